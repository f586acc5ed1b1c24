"""freehold advise --try: the ranking after the user's own cases, on scripted models that are said to be held."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from freehold.base.errors import ModelNotFound
from freehold.cli.report import trying
from freehold.run.store import ModelRef
from freehold.serve.fake import FakeModel

Run = Callable[..., tuple[int, str, str]]
GOOD, BAD = "qwen2.5:0.5b", "qwen2.5:1.5b"
CASES = [{"prompt": f"say {i}", "exact": f"{i}"} for i in range(6)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described_machine: Callable[..., object]) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    described_machine()
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, CASES)))
    return tmp_path


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str | BaseException]]:
    """Models that are held, by name, and what each will answer."""
    scripts: dict[str, list[str | BaseException]] = {
        GOOD: [f"{i}" for i in range(6)],
        BAD: ["0", *["no"] * 5],
    }

    def ref(store: object, wanted: str, fetch: bool) -> ModelRef:
        if wanted not in scripts:
            raise ModelNotFound(f"{wanted} is not downloaded")
        return ModelRef(
            wanted, Path("x"), "gguf", sha256(wanted.encode()).hexdigest(), 1, "freehold", "", "", ()
        )

    monkeypatch.setattr(trying, "_ref", ref)
    monkeypatch.setattr(trying._Opener, "__call__", lambda self, name: FakeModel(scripts[name], name=name))
    return scripts


def standing(told: dict) -> list[str]:
    return [j["id"] for kind in ("picks", "below", "unproven") for j in told[kind]]


def test_own_cases_beat_published_results_between_the_tried(run: Run, held: object, home: Path):
    plain = standing(json.loads(run("advise", "chat", "--json")[1]))
    status, out, err = run("advise", "chat", "--try", str(home / "mine.jsonl"), "--json")
    told = json.loads(out)
    good, bad = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"
    assert status == 0 and told["tried"]["before"] == [bad, good] and f"{GOOD}: 6 of 6 cases" in err
    after = standing(told)
    assert after.index(good) < after.index(bad) and plain.index(bad) < plain.index(good)
    assert [i for i in after if i not in (good, bad)] == [i for i in plain if i not in (good, bad)]
    assert {good, bad} <= {p["id"] for p in told["picks"]}  # own cases are evidence that the bar asks for
    (pair,) = told["tried"]["pairs"]
    assert (pair["wins"], pair["losses"]) == (5, 0)
    assert told["tried"]["models"][0]["answers"][0] | {"seconds": 0} == {
        "line": 1,
        "passed": True,
        "why": "",
        "text": "0",
        "seconds": 0,
    }


def test_the_text_says_what_was_tried_what_was_not_and_how_little_it_decides(
    run: Run, held: object, home: Path
):
    _, out, _ = run("advise", "--try", str(home / "mine.jsonl"))
    assert f"{GOOD} passed 6 of 6, 100 % (" in out
    assert f"{GOOD} against {BAD}: 5 wins, 0 losses" in out
    assert "not in the store: --yes pulls it" in out and "prove little" in out
    assert f"the ranking changed: {GOOD}, {BAD}; by published results it was {BAD}, {GOOD}" in out


def test_ctrl_c_keeps_the_answers_and_the_same_command_goes_on(run: Run, held: dict, home: Path):
    held[BAD] = ["0", KeyboardInterrupt()]
    status, _, err = run("advise", "--try", str(home / "mine.jsonl"))
    assert status == 130 and "the same command continues" in err
    held[BAD] = ["no"] * 5
    status, out, _ = run("advise", "--try", str(home / "mine.jsonl"))
    assert status == 0 and f"{BAD} passed 1 of 6" in out


def test_top_is_how_many_are_tried(run: Run, held: object, home: Path):
    told = json.loads(run("advise", "--try", str(home / "mine.jsonl"), "--top", "1", "--json")[1])
    assert len(told["tried"]["models"]) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "a task is missing"),
        (("chat", "--judge", "x"), "need --try"),
        (("chat", "--yes"), "need --try"),
        (("embeddings", "--try", "mine.jsonl"), "has none"),
        (("chat", "--on", "h100", "--try", "mine.jsonl"), "on this machine"),
        (("chat", "--try", "none.jsonl"), "No such file"),
        (("chat", "--try", "mine.jsonl"), "no model could be tried"),
    ],
)
def test_what_cannot_be_tried_says_why(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], says: str
):
    monkeypatch.chdir(home)
    status, _, err = run("advise", *args)
    assert status == 2 and says in err
