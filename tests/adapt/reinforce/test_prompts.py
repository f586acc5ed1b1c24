"""Prompts of a run: what is unseen stays unseen, and each step's are those of its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.adapt.evals.verifier import Verifier
from freehold.adapt.reinforce.prompts import PromptPlan, PromptSet, prompts_of
from freehold.base import platforms
from freehold.base.errors import UsageError

pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")
PLAN = PromptPlan(a_step=4, unseen=6, seed=3)


def made(
    tmp_path: Path, plan: PromptPlan = PLAN, lines: int = 20, test: list[str] | None = None
) -> PromptSet:
    path, unseen = tmp_path / "prompts.jsonl", None
    path.write_text("".join(json.dumps({"prompt": f"Say {i}", "answer": i}) + "\n" for i in range(lines)))
    (tmp_path / "reward.py").write_text("def reward(prompt, answer, item):\n    return 0\n")
    if test is not None:
        unseen = tmp_path / "test.jsonl"
        unseen.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in test))
    with Verifier(str(tmp_path / "reward.py")) as verifier:
        return prompts_of(verifier, path, unseen, plan)


def test_unseen_prompts_are_in_no_step(tmp_path: Path):
    found = made(tmp_path)
    trained = [each.prompt for step in range(1, 15) for each in found.step(step)]
    unseen = {each.prompt for each in found.unseen}
    assert len(unseen) == 6 and not unseen & set(trained) and len(set(trained)) == 14


def test_an_epoch_visits_every_line_once_and_the_next_in_another_order(tmp_path: Path):
    found = made(tmp_path, PromptPlan(a_step=7, unseen=6, seed=3))
    epochs = [[each.prompt for step in steps for each in found.step(step)] for steps in ((1, 2), (3, 4))]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert len(set(epochs[0])) == 14


def test_a_test_file_takes_its_lines_out_of_training(tmp_path: Path):
    found = made(tmp_path, test=["say  3", "Say 4", "never"])
    trained = {each.prompt for step in range(1, 20) for each in found.step(step)}
    assert [each.prompt for each in found.unseen] == ["say  3", "Say 4", "never"]
    assert not trained & {"Say 3", "Say 4"} and len(trained) == 18


def test_shots_are_solved_turns_before_the_prompt_and_neither_trained_nor_tested(tmp_path: Path):
    found = made(tmp_path, PromptPlan(a_step=4, unseen=6, seed=3, shots=2, system="Be short."))
    messages = found.step(1)[0].messages
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    shots = {m.content for m in messages[1:-1] if m.role == "user"}
    assert messages[2].content == messages[1].content.removeprefix("Say ")
    others = {each.prompt for step in range(1, 9) for each in found.step(step)} | {
        each.prompt for each in found.unseen
    }
    assert not shots & others and len(others) == 18


def test_more_shots_than_solved_lines_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="has 20 lines with an answer"):
        made(tmp_path, PromptPlan(a_step=4, unseen=0, seed=0, shots=30))


@pytest.mark.heavy
def test_a_data_sets_steps_have_fresh_items_and_none_of_the_unseen():
    pytest.importorskip("reasoning_gym")
    with Verifier("rg:chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1") as verifier:
        found = prompts_of(verifier, None, None, PromptPlan(a_step=4, unseen=30, seed=0, shots=1))
        unseen = {each.prompt for each in found.unseen}
        steps = [[each.prompt for each in found.step(n)] for n in (1, 2, 3)]
        assert all(len(step) == 4 and not unseen & set(step) for step in steps)
        assert steps[0] != steps[1] and len(found.unseen) <= 30
        scores = verifier.score([(each.prompt, each.truth, each.item) for each in found.step(2)])
        assert [each.value for each in scores] == [1.0] * 4
        with pytest.raises(UsageError, match="makes its own"):
            prompts_of(verifier, None, Path("test.jsonl"), PLAN)
