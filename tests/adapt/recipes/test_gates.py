"""Gates pass by chance as rarely as they say, however often they are tried; what each condition requires."""

from __future__ import annotations

import random

import pytest

from freehold.adapt.recipes.gates import GateMarks, allowed, hopeless, verdict
from freehold.adapt.recipes.recipe import GateRule

RULE = GateRule(data="unseen.jsonl", better_than="base", p=0.05)
GATES = 2000


def same_skill(draw: random.Random, items: int, share: float, alike: float) -> GateMarks:
    """Marks of two models that are equally good; on a share `alike` of the items they answer the same."""
    own, other = [], []
    for _ in range(items):
        one = float(draw.random() < share)
        own.append(one)
        other.append(one if draw.random() < alike else float(draw.random() < share))
    return GateMarks(tuple(own), tuple(other))


@pytest.mark.parametrize(
    ("items", "share", "alike"), [(40, 0.5, 0.0), (200, 0.2, 0.5), (200, 0.9, 0.0), (60, 0.03, 0.0)]
)
def test_gates_where_nothing_was_learnt_pass_in_at_most_5_percent(items: int, share: float, alike: float):
    draw = random.Random(1)
    passed = sum(verdict(RULE, same_skill(draw, items, share, alike)).passed for _ in range(GATES))
    assert passed <= 0.055 * GATES


def test_trying_a_gate_again_and_again_does_not_pass_it_more_often():
    """Ten results that learnt nothing, each measured on the same items: the builder that stops at the first pass."""
    draw = random.Random(2)

    def peeked(limited: bool) -> bool:
        other = tuple(float(draw.random() < 0.4) for _ in range(60))
        for look in range(1, 11):
            own = tuple(float(draw.random() < 0.4) for _ in range(60))
            if verdict(RULE, GateMarks(own, other), look=look if limited else 1).passed:
                return True
        return False

    assert sum(peeked(limited=True) for _ in range(GATES)) <= 0.055 * GATES
    assert sum(peeked(limited=False) for _ in range(GATES)) > 0.055 * GATES  # what the looks are counted for


def test_stopping_before_all_items_are_asked_changes_no_verdict():
    draw, stopped = random.Random(3), 0
    for _ in range(300):
        marks = same_skill(draw, 80, 0.5, 0.3)
        whole = verdict(RULE, marks).passed
        for asked in range(8, 80, 8):
            if hopeless(RULE, marks.own[:asked], marks.other, 1, 80):
                stopped += 1
                assert not whole
                break
    assert stopped > 100


def test_scores_are_compared_by_resampling_and_pass_as_rarely():
    draw = random.Random(4)
    passed = 0
    for _ in range(300):
        marks = GateMarks(*(tuple(draw.choice((0, 0.2, 0.6, 1)) for _ in range(50)) for _ in range(2)))
        assert not marks.plain
        passed += verdict(RULE, marks).passed
    assert passed <= 0.055 * 300
    better = GateMarks((0.6,) * 40, (0.2,) * 40)
    assert verdict(RULE, better).passed and verdict(RULE, better).figures["difference"] == pytest.approx(0.4)


def test_all_looks_together_stay_within_p():
    assert sum(allowed(0.05, look) / 2 for look in range(1, 10_000)) < 0.05
    assert allowed(0.05, 1) == 0.05


def test_a_clear_gain_passes_and_a_loss_does_not():
    gained = GateMarks((1.0,) * 20 + (0.0,) * 20, (0.0,) * 40)
    assert verdict(RULE, gained).passed
    lost = GateMarks(gained.other, gained.own)
    assert "0 gained, 20 lost" in verdict(RULE, lost).failures[0]


def test_every_condition_that_is_not_met_has_its_figures():
    rule = GateRule(data="x", at_least=0.9, forgets_at_most=2, kld=0.05)
    result = verdict(rule, GateMarks((1.0,) * 9 + (0.0,)), lost=3, divergence=0.0712)
    assert len(result.failures) == 3
    assert "90.0% of 10 items" in result.failures[0] and "lower bound" in result.failures[0]
    assert "3 facts" in result.failures[1] and "0.0712" in result.failures[2]
    assert verdict(rule, GateMarks((1.0,) * 100), lost=2, divergence=0.05).passed
