"""Verifiers that pay for nothing are called so before training, and honest ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.adapt.evals.verifier import Verifier
from freehold.adapt.reinforce.course import AttackResult, attacked
from freehold.adapt.reinforce.prompts import PromptItem
from freehold.base import platforms

pytestmark = pytest.mark.skipif(not platforms.can_confine(), reason="seccomp is Linux's")

ITEMS = [PromptItem(f"What is {n} and {n}?", {"answer": str(2 * n)}, str(2 * n)) for n in range(30)]


def findings(tmp_path: Path, body: str, items: list[PromptItem] = ITEMS) -> dict[str, AttackResult]:
    path = tmp_path / "reward.py"
    path.write_text(f"def reward(prompt, answer, item):\n    return {body}\n")
    with Verifier(str(path)) as verifier:
        return {each.attack: each for each in attacked(verifier, items)}


def paid(found: dict[str, AttackResult]) -> set[str]:
    return {name for name, each in found.items() if each.pays}


def test_an_honest_verifier_withstands_every_attack(tmp_path: Path):
    assert paid(findings(tmp_path, "answer.strip() == item['answer']")) == set()


@pytest.mark.parametrize(
    ("body", "attack"),
    [
        ("item['answer'] in answer", "every candidate listed"),
        ("len(answer) < 5", "empty"),
        ("bool(answer) == bool(item['answer'])", "blank"),
        ("min(len(answer) / 100, 1)", "long"),
        ("prompt in answer", "the prompt"),
        ("any(c.isdigit() for c in answer)", "all digits"),
        ("answer.count('42') / 60", "repetition"),
        ("float(answer)", "a score"),
    ],
)
def test_a_gameable_verifier_is_called_so(body: str, attack: str, tmp_path: Path):
    assert attack in paid(findings(tmp_path, body))


def test_one_answer_for_all_pays_where_most_items_have_it(tmp_path: Path):
    skewed = [PromptItem("Is it?", {"answer": a}, a) for a in ["True"] * 14 + ["False"] * 6]
    even = [PromptItem("Is it?", {"answer": a}, a) for a in ["True", "False"] * 10]
    assert paid(findings(tmp_path, "answer == item['answer']", skewed)) == {"the most frequent answer"}
    assert paid(findings(tmp_path, "answer == item['answer']", even)) == set()


def test_what_an_attack_breaks_is_counted(tmp_path: Path):
    found = findings(tmp_path, "int(answer) == int(item['answer'])")
    assert found["empty"].failures == {"exception": 20} and not found["empty"].pays


@pytest.mark.heavy
def test_a_data_set_that_pays_for_anything_is_called_gameable():
    pytest.importorskip("reasoning_gym")
    with Verifier("rg:game_of_life_halting") as verifier:
        assert verifier.is_gym
        items = [PromptItem(i.question, {"index": i.index}, i.answer) for i in verifier.items(0, 20)]
        assert "repetition" in paid({each.attack: each for each in attacked(verifier, items)})


@pytest.mark.heavy
def test_a_data_set_pays_its_own_answers_and_not_garbage():
    pytest.importorskip("reasoning_gym")
    with Verifier("rg:chain_sum:min_terms=2,max_terms=2,max_digits=2") as verifier:
        items = [PromptItem(i.question, {"index": i.index}, i.answer) for i in verifier.items(100, 20)]
        scores = verifier.score([(i.prompt, i.truth, i.item) for i in items])
        assert [each.value for each in scores] == [1.0] * 20
        assert paid({each.attack: each for each in attacked(verifier, items)}) == set()
