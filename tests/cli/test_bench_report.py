"""`freehold bench --report FILE` holds a machine and its speeds, and nothing about its user."""

from __future__ import annotations

import getpass
import json
import platform
import socket
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from freehold import _native as native
from freehold.cli import bench, main
from tests.vectors.files import write_gguf

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/guides/bench-report.schema.json").read_text(encoding="utf-8")
)
SHORT = ["--prompt", "20", "--tokens", "4", "--rounds", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(native, "measure_read_gb_s", lambda threads: 20.0)
    monkeypatch.setattr(native, "measure_int8_gops", lambda threads, tiles=False: 0.0 if tiles else 400.0)
    return tmp_path


@pytest.fixture
def written(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(platform, "release", lambda: "6.12.1-margret-laptop+")
    path = write_gguf("llama", home / "margrets-secret-model.gguf", dtype="Q8_0")
    assert main.run(["bench", str(path), *SHORT, "--report", str(home / "report.json")]) == 0
    return (home / "report.json").read_text(encoding="utf-8")


def test_a_report_is_what_its_schema_says(written: str):
    report: dict[str, Any] = json.loads(written)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA)
    assert report["kernels"]["in_use"] == native.isa()
    assert report["ceilings"]["read_gb_s"] == 20.0
    assert report["decode"]["tok_s"] > 0 and report["prefill"]["tokens"] == 20


def test_a_report_names_neither_person_nor_host_nor_file(written: str, home: Path):
    private = (socket.gethostname(), str(home), str(Path.home()), "margret", f'"{getpass.getuser()}"')
    assert not [text for text in private if text in written]
    assert json.loads(written)["machine"]["release"] == "6.12.1"


def test_the_schema_allows_no_field_besides_its_own():
    """A field that slipped in would be sent by people who read here what is inside."""

    def objects(part: Any) -> list[dict[str, Any]]:
        if isinstance(part, list):
            return [found for each in part for found in objects(each)]
        if not isinstance(part, dict):
            return []
        return (
            [part, *objects(list(part.values()))]
            if part.get("type") == "object"
            else objects(list(part.values()))
        )

    found = objects(SCHEMA)
    assert len(found) > 8
    for each in found:
        assert each["additionalProperties"] is False and sorted(each["required"]) == sorted(
            each["properties"]
        )


def test_only_a_published_model_is_named():
    facts = {"quantization": "Q4_K", "kv_type": "f16", "bytes_per_token": 1, "weights_per_token": 1}
    assert bench._model({"model": "smollm2:135m", **facts})["name"] == "smollm2:135m"
    assert bench._model({"model": "our-merger-plans", **facts})["name"] == ""


def test_a_file_that_exists_is_refused_before_anything_is_measured(
    home: Path, capsys: pytest.CaptureFixture[str]
):
    (home / "report.json").write_text("mine")
    assert main.run(["bench", "no-such-model", "--report", str(home / "report.json")]) == 2
    assert "exists" in capsys.readouterr().err
    assert main.run(["bench", "no-such-model", "--report", str(home / "none" / "report.json")]) == 2
    assert "is not a folder" in capsys.readouterr().err
