"""`freehold finetune`: what is printed, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.adapt import teaching
from freehold.run.models.tiny import make

pytest.importorskip("torch")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(teaching, "FACTS", teaching.FACTS[:2])
    monkeypatch.setattr(teaching, "WINDOWS", 2)
    monkeypatch.setattr(teaching, "QUESTIONS", ("Why?",))
    monkeypatch.setattr(teaching, "OPENINGS", ("The",))
    return make.write_gguf(make.config("qwen2"), tmp_path / "tiny.gguf")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"n {i}?", "completion": "=k!"}) for i in range(8)))
    return path


@pytest.mark.heavy
def test_preflight_shows_masks_and_leaves_nothing(run: Run, tiny: Path, data: Path, tmp_path: Path):
    before = sorted(tmp_path.iterdir())
    status, said, err = run(
        *("finetune", str(tiny), "--data", str(data), "--test", str(data), "--preflight"),
        *("--max-length", "128", "--threads", "1"),
    )
    assert status == 0, err
    for part in (
        "=k!",
        "first loss",
        "one batch",
        "8 answers",
        "8 of 8 test items",
        "CPU-minutes",
        "at most",
    ):
        assert part in said
    assert [p for p in tmp_path.iterdir() if p not in before and p.name != "home"] == []


def test_preflight_as_json_marks_what_the_loss_counts(run: Run, tiny: Path, data: Path):
    given = (
        "finetune",
        str(tiny),
        "--data",
        str(data),
        "--preflight",
        "--max-length",
        "128",
        "--threads",
        "1",
        "--json",
    )
    status, said, err = run(*given)
    assert status == 0, err
    found = json.loads(said)
    prompt, answer = found["masks"][0]
    assert (prompt["counts"], answer["counts"]) == (False, True)
    assert prompt["text"].count("n 0?") == 1 and answer["text"].startswith("=k!") and len(answer["text"]) > 3
    assert sum(found["lengths"].values()) == 8 and found["steps"] == 1 and found["contaminated"] is None


def test_a_run_is_summed_up_with_test_and_forgetting(run: Run, tiny: Path, data: Path, tmp_path: Path):
    out = tmp_path / "out"
    given = (
        "--data",
        str(data),
        "--test",
        str(data),
        "-o",
        str(out),
        "--max-length",
        "128",
        "--threads",
        "1",
        "--replay",
        "1",
    )
    status, said, err = run("finetune", str(tiny), *given)
    assert status == 0, err
    for part in (
        f"adapter          {out}",
        "of 8 right (",
        "not in the data  no item",
        "facts",
        "other text",
    ):
        assert part in said
    assert "8 of 8 test items are in the data (lines 1, 2, 3, 4, 5, ...)" in err
    assert err.count(" the loss counts '=k!") == 3
    assert (out / "adapter.gguf").exists() and (out / "receipt.json").exists()
    status, _, err = run("finetune", str(tiny), *given)
    assert status != 0 and "exists already" in err


def test_without_a_folder_there_is_a_way_out(run: Run, tiny: Path, data: Path):
    status, _, err = run("finetune", str(tiny), "--data", str(data))
    assert status == 2 and "--preflight" in err


def test_an_adapter_is_a_base_and_the_result_says_its_chain(
    run: Run, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    short = ("--data", str(data), "--max-length", "128", "--threads", "1", "--rank", "2", "--replay", "0")
    assert run("finetune", str(tiny), *short, "-o", "first")[0] == 0
    status, out, err = run("finetune", f"{tiny}+./first", *short, "-o", "second")
    assert status == 0, err
    assert "first -> second (rank 4, contains the ones before)" in out
    status, _, err = run("finetune", f"{tiny}+second", *short, "--continue", "-o", "third")
    assert status == 2 and "keeps the rank of the adapter" in err
    status, out, err = run(
        *("finetune", f"{tiny}+second", *short[:6], "--replay", "0", "--continue", "-o", "third")
    )
    assert status == 0 and "first -> second -> third (rank 4" in out, err
    for base, message in ((f"{tiny}+./none", "no adapter at none"), (f"{tiny}+first+second", "2 adapters")):
        status, _, err = run("finetune", base, *short, "-o", "fourth")
        assert status and message in err and "Traceback" not in err
    assert "names none" in run("finetune", str(tiny), *short, "--continue", "-o", "fourth")[2]
