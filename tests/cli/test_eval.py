"""`freehold eval`: tables and JSON, adapters, results that are compared, and refusals before a model is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freehold.cli import eval as eval_verb
from freehold.run.models.load import load_model
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
    assert status == 0 and head.split() == [
        "TASK",
        "METRIC",
        "SCORE",
        "95%",
        "CI",
        "ITEMS",
        "NEW",
        "ANSWERS",
    ]
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


def test_created_model_scores_choices_with_its_adapter(run: Run, path: Path, home: Path):
    write_for(load_model(path, name="tiny"), home / "mine", seed=1, rank=4, strength=0.5)
    (home / "Modelfile").write_text(f"FROM {path}\nADAPTER ./mine\n")
    assert run("create", "made", "-f", "Modelfile")[0] == 0
    found = []
    for model, out in (("made", "a"), (f"{path}+mine", "b"), (str(path), "c")):
        assert (
            run("eval", model, "--data", "own.jsonl", "--context", "256", "-o", out, "--limit", "1")[0] == 0
        )
        (samples,) = (home / out).rglob("samples_own_*.jsonl")
        found.append(json.loads(samples.read_text())["resps"])
    assert found[0] == found[1] != found[2]


def test_results_of_other_items_are_not_compared(run: Run, path: Path):
    for out, limit in (("a", "3"), ("b", "2")):
        run("eval", str(path), "--data", "own.jsonl", "--context", "256", "-o", out, "--limit", limit)
    status, _, err = run("eval", "--compare", "a", "b")
    assert status == 2 and "own: 1 items are in only one result; the first is doc 2" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "name a MODEL and what to score it on"),
        (("MODEL",), "name a MODEL and what to score it on"),
        (("MODEL", "--data", "nothing.jsonl"), "--data nothing.jsonl is neither a file nor a task"),
        (("MODEL", "--data", "humanevl"), "did you mean humaneval?"),
        (("MODEL", "--data", "bfcl"), "did you mean bfcl:simple_python?"),
        (("MODEL", "--data", "rg:"), "did you mean rg:chain_sum?"),
        (("MODEL", "--data", "bfcl:simple_java"), "bfcl:simple_java is not a category"),
        (("MODEL", "--data", "humaneval", "--offline"), "offline mode forbids fetching it"),
        (("MODEL", "--data", "own.jsonl", "--style", "tools"), "own.jsonl has no style 'tools'"),
        (("MODEL+nowhere", "--data", "own.jsonl"), "there is no adapter at nowhere"),
        (("smollm2:135m+./nowhere", "--data", "own.jsonl"), "there is no adapter at nowhere"),
        (("MODEL", "--compare", "a", "b"), "--compare reads two results and runs no model"),
        (("--compare", "a", "b", "--limit", "2"), "--compare reads two results and runs no model"),
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


@pytest.fixture
def tiny_disk() -> Iterator[None]:
    """Let no file of this process grow beyond 300 bytes: the system says so as it says that a disk is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_one_error_and_the_answers_before_it_are_kept(
    run: Run, path: Path, home: Path, request: pytest.FixtureRequest
):
    args = ("eval", str(path), "--data", "own.jsonl", "--context", "256")
    run("eval", str(path), "--data", "own.jsonl", "--context", "256", "--limit", "1")
    (kept,) = (home / "home" / "evals").glob("items-*.jsonl")
    before = kept.read_bytes()
    request.getfixturevalue("tiny_disk")
    status, out, err = run(*args)
    assert status == 1 and not out and "Traceback" not in err
    assert f"error: {kept} cannot be written: File too large\nhint: free some space\n" in err
    assert kept.read_bytes().startswith(before)


@pytest.mark.heavy
def test_killed_run_continues_to_the_results_of_an_undisturbed_one(run: Run, path: Path, home: Path):
    cases = [{"prompt": f"Say {n}.", "regex": ".*a.*", "max_tokens": 16} for n in range(24)]
    (home / "many.jsonl").write_text("\n".join(map(json.dumps, cases)))
    args = ["eval", str(path), "--data", "many.jsonl", "--context", "256", "--threads", "1", "--json"]
    command = [sys.executable, "-m", "freehold.cli.main", *args]
    env = {**os.environ, "FREEHOLD_HOME": str(home / "killed")}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and _lines(home / "killed") < 4:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    kept = _lines(home / "killed")
    again = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    undisturbed = json.loads(run(*args)[1])
    assert kept >= 4 and again["answered"]["many"] < 24 == undisturbed["answered"]["many"]
    for field in ("results", "task_hashes", "n-samples"):
        assert again[field] == undisturbed[field]


def _lines(home: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (home / "evals").glob("items-*.jsonl"))
