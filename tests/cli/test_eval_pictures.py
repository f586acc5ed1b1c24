"""`freehold eval` on cases with pictures: answered once by a model that sees, refused by name for one that does not."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freehold.run.models.tiny import make
from freehold.run.pictures.decoders import shared as decoders
from tests.vectors.files import write_gguf

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    pil = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("red", "blue"):
        file = io.BytesIO()
        pil.new("RGB", (64, 48), name).save(file, "PNG")
        (tmp_path / f"{name}.png").write_bytes(file.getvalue())
    blue = base64.b64encode((tmp_path / "blue.png").read_bytes()).decode()
    lines = [
        {"prompt": "What?", "images": ["red.png"], "regex": ".*", "max_tokens": 4},
        {"prompt": "What?", "images": [f"data:image/png;base64,{blue}"], "regex": ".*", "max_tokens": 4},
        {"prompt": "What?", "regex": ".*", "max_tokens": 4},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    yield tmp_path
    decoders.close()


def test_a_model_that_sees_answers_them_and_a_second_run_answers_nothing(run: Run, folder: Path):
    make.write_mmproj(make.config("qwen3_vl"), folder / "mmproj-F16.gguf")
    model = make.write_gguf(make.config("qwen3_vl"), folder / "m.gguf")
    args = ("eval", str(model), "--data", "own.jsonl", "--context", "256", "--json")
    status, out, err = run(*args, "-o", "results")
    assert status == 0, err
    assert json.loads(out)["answered"] == {"own": 3}
    (samples,) = (folder / "results").rglob("samples_own_*.jsonl")
    assert "base64" not in samples.read_text()
    again = json.loads(run(*args)[1])
    assert again["answered"] == {"own": 0} and again["results"] == json.loads(out)["results"]
    (folder / "red.png").write_bytes((folder / "blue.png").read_bytes() + b"\0")
    assert json.loads(run(*args)[1])["answered"] == {"own": 1}  # of the picture that changed


def test_a_text_model_is_refused_by_name_before_it_answers(run: Run, folder: Path):
    model = write_gguf("qwen2", folder / "tiny.gguf", dtype="Q8_0")
    status, out, err = run("eval", str(model), "--data", "own.jsonl", "--context", "256")
    assert status != 0 and out == ""
    assert "tiny reads text only; 2 of 3 items of own have pictures" in err
    assert "freehold list shows which models read pictures" in err
