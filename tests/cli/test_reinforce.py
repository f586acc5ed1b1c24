"""`freehold reinforce`: what is printed, where, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.adapt import teaching
from freehold.base import platforms
from freehold.run.models.tiny import make

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")
Run = Callable[..., tuple[int, str, str]]
REWARD = (
    "def reward(prompt, answer, item):\n"
    "    return sum(c.isalpha() and c < 'n' for c in answer) / max(len(answer), 8)\n"
)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a short run on a tiny model."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(teaching, "FACTS", teaching.FACTS[:2])
    monkeypatch.setattr(teaching, "WINDOWS", 2)
    model = make.write_gguf(make.config("qwen2"), tmp_path / "tiny.gguf")
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {i}"}}\n' for i in range(8)))
    options = f"--batch 2 --group 4 --max-tokens 6 --unseen 2 --rank 2 --threads 1 -o {tmp_path / 'out'}"
    files = ["--reward", str(tmp_path / "reward.py"), "--prompts", str(tmp_path / "prompts.jsonl")]
    return [str(model), *files, *options.split()]


def test_what_was_learnt_is_on_stdout_and_steps_are_on_stderr(run: Run, given: list[str], tmp_path: Path):
    status, said, err = run("reinforce", *given, "--steps", "2", "--lr", "0")
    assert status == 0, err
    for part in ("prompts pass greedy", "p = 1", "nats per token", "failures    none", f"{tmp_path}/out"):
        assert part in said
    assert "withstood" in err and "before training" in err and "after training" in err
    assert "facts" in said and "other text" in said


def test_every_step_stays_with_its_mismatch_however_quick(run: Run, given: list[str]):
    status, _, err = run("reinforce", *given, "--steps", "3")
    assert status == 0, err
    steps = [line for line in err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in steps] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert all("mismatch" in line for line in steps)


def test_json_is_the_receipt(run: Run, given: list[str], tmp_path: Path):
    status, said, _ = run("reinforce", *given, "--steps", "1", "--json")
    assert status == 0
    assert json.loads(said) == json.loads((tmp_path / "out" / "receipt.json").read_text())


def test_answers_that_a_second_verifier_scores_apart_are_shown(run: Run, given: list[str], tmp_path: Path):
    (tmp_path / "check.py").write_text("def reward(prompt, answer, item):\n    return 1\n")
    asked = ["--check", str(tmp_path / "check.py"), "--allow-gameable"]
    status, said, err = run("reinforce", *given, "--steps", "1", *asked)
    assert status == 0, err
    assert (
        "parts from the reward in" in said and " and 1.00 for '" in said and "the check parts in" not in said
    )


def test_a_reward_that_pays_for_anything_is_refused_in_two_lines(run: Run, given: list[str], tmp_path: Path):
    (tmp_path / "reward.py").write_text("def reward(prompt, answer, item):\n    return 1\n")
    status, said, err = run("reinforce", *given, "--steps", "1")
    assert (status, said) == (2, "")
    assert "reward.py is gameable: it pays for" in err and "--allow-gameable" in err


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reward", "none.py"], "none.py: No such file"),
        (["--reward", "rg:nothing_like_it"], "not registered"),
        (["--reward", "rg:chain_sum:terms"], "'terms' is not an option"),
        (["--check", "none.py"], "none.py: No such file"),
        (["--steps", "0"], "0 is outside the range"),
        (["--group", "1"], "1 is outside the range"),
        (["--loss", "ppo"], "'ppo' is not one of"),
        (["--lr", "nan"], "'nan' is not a finite number"),
        (["--cap", "inf"], "'inf' is not a finite number"),
        (["--shots", "2"], "0 lines with an answer"),
    ],
)
def test_what_cannot_be_done_is_refused(options: list[str], says: str, run: Run, given: list[str]):
    status, said, err = run("reinforce", *given, "--steps", "1", *options)
    assert (status, said) == (2, "") and says in err
