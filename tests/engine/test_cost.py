"""Lengths are chosen from measured costs, of whatever shape."""

from __future__ import annotations

import pytest

from freehold.run.engine.schedule.budget import FORGET, STALE, StepCost
from freehold.run.engine.speculate.draft import LADDER, best_extra

CERTAIN = [0.99**i for i in range(1, 64)]


def linear(slope: float):
    return lambda tokens: 1.0 + slope * (tokens - 1)


@pytest.mark.parametrize("plain", [1, 4, 16])
def test_hopeless_drafts_are_never_verified(plain: int):
    assert best_extra([0.0] * 20, plain, linear(0.001)) == 0
    assert best_extra([], plain, linear(0.0)) == 0


def test_certain_drafts_are_verified_by_the_dozen():
    assert best_extra(CERTAIN, 1, linear(0.05)) == 63


def test_no_step_is_made_longer_than_it_may_be():
    assert best_extra(CERTAIN, 1, linear(0.05), lambda tokens: tokens <= 16) == 15


def test_a_size_that_was_never_tried_is_thought_as_dear_as_the_size_below_it():
    cost = StepCost()
    cost.add(4, 0.02)
    assert cost.seconds(64) < cost.at_most(64) == pytest.approx(0.32)
    cost.add(32, 0.05)
    assert cost.at_most(64) == pytest.approx(0.1) and cost.at_most(32) == 0.05


def test_doubtful_drafts_are_verified_while_they_pay():
    gains = [0.7**i for i in range(1, 32)]
    assert best_extra(gains, 1, linear(0.05)) == 5
    assert best_extra(gains, 1, linear(0.9)) == 0


def test_step_that_grows_with_every_token_verifies_nothing():
    assert best_extra(CERTAIN, 4, linear(1.0)) == 0


def test_full_batch_leaves_less_room_for_drafts():
    tile = lambda tokens: 1.0 if tokens <= 8 else tokens / 8  # noqa: E731
    gains = [0.8**i for i in range(1, 20)]
    assert [best_extra(gains, plain, tile) for plain in (1, 4, 8)] == [7, 4, 0]


def test_cost_that_falls_is_taken_for_what_it_is():
    cost = lambda tokens: 5.0 if tokens < 16 else 2.0  # noqa: E731
    assert best_extra(CERTAIN[:15], 1, lambda tokens: 1.0 if tokens == 1 else cost(tokens)) == 15


def test_cost_is_of_steps_left_alone():
    cost = StepCost()
    for seconds in (1.0, 9.0, 1.1, 7.0, 8.0):
        cost.add(1, seconds)
    assert cost.seconds(1) == 1.1


def test_unmeasured_sizes_are_estimated_from_their_neighbours():
    cost = StepCost()
    assert cost.seconds(4) == 0.0
    cost.add(1, 1.0)
    assert 1.0 < cost.seconds(4) < 1.5
    cost.add(8, 2.0)
    cost.add(12, 3.0)
    assert cost.seconds(10) == 2.5
    assert cost.seconds(7) <= 2.0


def test_cost_not_seen_for_long_is_forgotten():
    cost = StepCost()
    cost.add(16, 9.0)
    for _ in range(2 * STALE):
        cost.add(1, 1.0)
    assert cost.count(16) == 0 and cost.count(1) > 1 and cost.seconds(16) < 9.0


def test_sizes_that_were_slow_while_others_had_the_machine_are_tried_again_soon():
    """As the first answers beside the writing of a pack see it: all of the ladder looks dear, and then is not."""
    cost = StepCost()
    for tokens in (1, *LADDER, *LADDER):
        cost.add(tokens, 1.0 if tokens == 1 else 9.0, drafted=tokens > 1)
    assert best_extra(CERTAIN[:4], 1, cost.seconds) == 0
    steps = 0
    while best_extra(CERTAIN[:4], 1, cost.seconds) == 0:
        cost.add(1, 0.5)
        steps += 1
    assert steps <= FORGET


def test_first_step_with_drafts_of_a_size_is_no_measure_of_it():
    """It touches memory for the first time; priced by it, drafts were not tried again for FORGET steps."""
    cost = StepCost()
    for _ in range(4):
        cost.add(1, 1.0)
    cost.add(3, 5.0, drafted=True)
    assert cost.count(3) == 0 and best_extra([0.9, 0.8], 1, cost.seconds) > 0
    cost.add(3, 1.3, drafted=True)
    assert cost.seconds(3) == 1.3


def test_what_newest_tokens_alone_take_is_not_forgotten_while_every_step_has_a_draft():
    cost = StepCost()
    for _ in range(2):
        cost.add(1, 1.0)
    for _ in range(STALE - 1):
        cost.add(8, 1.5, drafted=True)
    assert cost.count(1) == 2 and cost.seconds(1) == 1.0
    cost.add(8, 1.5, drafted=True)
    assert cost.count(1) == 0


def test_size_that_is_dear_is_tried_once_in_a_while_and_no_more():
    cost, tried = StepCost(), 0
    cost.add(1, 1.0)
    for _ in range(10 * FORGET):
        extra = best_extra([0.9, 0.8], 1, cost.seconds)
        tried += extra > 0
        cost.add(1 + extra, 5.0 if extra else 1.0, drafted=extra > 0)
    assert 5 <= tried <= 25
