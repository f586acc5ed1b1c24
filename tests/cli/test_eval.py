"""`freehold eval`: tables and JSON, adapters, results that are compared, and refusals before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.cli import eval as eval_verb
from freehold.models.load import load_model
from tests.vectors.adapters import write_for
from tests.vectors.files import write_gguf

Run = Callable[..., tuple[int, str, str]]
CASES = [
    {"prompt": "The end of", "choices": [" it", " day"], "answer": 0},
    {"prompt": "Say a.", "contains": "a", "max_tokens": 4},
    {"prompt": "Say b.", "regex": ".*", "max_tokens": 4},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf("qwen2", tmp_path_factory.mktemp("eval") / "tiny.gguf", dtype="Q8_0")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, CASES)))
    return tmp_path


def test_table_has_each_metric_with_its_interval(run: Run, path: Path):
    status, out, err = run("eval", str(path), "--data", "own.jsonl", "--context", "256")
    head, first, *_ = out.splitlines()
    assert status == 0 and head.split() == ["TASK", "METRIC", "SCORE", "95", "%", "ITEMS", "ANSWERED", "NOW"]
    assert first.split()[:2] == ["own", "acc"] and first.split()[-2:] == ["3", "3"]
    assert "CPU-seconds" in err and "own: 3 of 3 cases" in err


def test_json_is_one_object_and_a_second_run_answers_nothing(run: Run, path: Path):
    args = ("eval", str(path), "--data", "own.jsonl", "--context", "256", "--json")
    first, again = (json.loads(run(*args)[1]) for _ in range(2))
    assert first["answered"] == {"own": 3} and again["answered"] == {"own": 0}
    assert first["results"] == again["results"] and first["written"] is None
    assert json.loads(run(*args, "--limit", "2")[1])["n-samples"] == {"own": {"original": 3, "effective": 2}}


def test_adapter_after_a_plus_is_another_subject_and_compared_with_its_base(run: Run, path: Path, home: Path):
    write_for(load_model(path, name="tiny"), home / "mine", seed=1, rank=4, strength=0.5)
    for model, out in ((str(path), "a"), (f"{path}+mine", "b")):
        args = ("eval", model, "--data", "own.jsonl", "--context", "256", "-o", out, "--json")
        found = json.loads(run(*args)[1])
        assert found["answered"] == {"own": 3}
        assert bool(found["config"]["model_args"]["adapter"]) == (out == "b")
    status, out, _ = run("eval", "--compare", "a", "b")
    assert status == 0 and out.startswith("own, acc, 3 items\n") and "exact McNemar" in out
    (task,) = json.loads(run("eval", "--compare", "a", "b", "--json")[1])["tasks"]
    assert task["items"] == 3 and task["wins"] + task["losses"] <= 3


def test_results_of_other_items_are_not_compared(run: Run, path: Path):
    for out, limit in (("a", "3"), ("b", "2")):
        run("eval", str(path), "--data", "own.jsonl", "--context", "256", "-o", out, "--limit", limit)
    status, _, err = run("eval", "--compare", "a", "b")
    assert status == 2 and "own: 1 items are in one result alone; the first is doc 2" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "name a MODEL and what to score it on"),
        (("MODEL",), "name a MODEL and what to score it on"),
        (("MODEL", "--data", "nothing.jsonl"), "--data nothing.jsonl is neither a file nor a task"),
        (("MODEL", "--data", "humanevl"), "did you mean humaneval?"),
        (("MODEL", "--data", "bfcl:simple_java"), "bfcl:simple_java is not a category"),
        (("MODEL", "--data", "humaneval", "--offline"), "offline mode forbids fetching it"),
        (("MODEL", "--data", "own.jsonl", "--style", "tools"), "own.jsonl has no style 'tools'"),
        (("MODEL+nowhere", "--data", "own.jsonl"), "there is no adapter at nowhere"),
        (("MODEL", "--compare", "a", "b"), "--compare reads two results and runs no model"),
        (("MODEL", "--data", "own.jsonl", "--data", "deep/own.jsonl"), "two tasks are called own"),
    ],
)
def test_wrong_use_is_refused_with_the_way_out(
    run: Run, path: Path, home: Path, args: tuple[str, ...], said: str
):
    (home / "deep").mkdir()
    (home / "deep" / "own.jsonl").write_text((home / "own.jsonl").read_text())
    status, out, err = run("eval", *(arg.replace("MODEL", str(path)) for arg in args))
    assert status in (1, 2) and said in err and "hint: " in err and not out


def test_interrupt_says_that_the_same_command_continues(
    run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(eval_verb, "_evaluated", stopped)
    status, _, err = run("eval", str(path), "--data", "own.jsonl")
    assert status == 130 and "the same command continues" in err
