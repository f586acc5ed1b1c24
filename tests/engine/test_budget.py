"""A step's seconds become tokens by what tokens were measured to cost."""

from __future__ import annotations

from math import inf

import pytest

from freehold.run.engine.schedule.budget import (
    BURST_S,
    FORGET,
    ITL_FACTOR,
    MIXED_PREFILL_TOKENS,
    PREFILL_TOKENS,
    PROBE,
    SHARED_NOW,
    SHARED_TOKENS,
    TILE,
    Budget,
    MixedCost,
    Prefill,
    PrefillCost,
    StepCost,
)

TOKEN_S, LOOK_S = 0.001, 4e-7


def chunk(tokens: int, first: int) -> float:
    return tokens * (TOKEN_S + LOOK_S * (first + tokens / 2))


def measured(decodes: int = 4, decode_s: float = 0.02) -> Budget:
    budget = Budget()
    for first in range(0, 4096, 256):
        budget.learn(0, [Prefill(first, 256, False)], 0, chunk(256, first))
    for _ in range(4):
        budget.learn(decodes, [], 0, decode_s)
    return budget


# --- a prompt's tokens -------------------------------------------------------------------------------


def test_token_of_a_prompt_has_a_cost_and_one_for_each_position_it_attends_to():
    cost = PrefillCost()
    for first in range(0, 8192, 512):
        cost.add(256, first, chunk(256, first))
    assert cost.slope == pytest.approx(LOOK_S, rel=1e-6) and cost.flat == pytest.approx(TOKEN_S, rel=1e-6)
    assert cost.seconds(100, 20_000) == pytest.approx(chunk(100, 20_000))
    assert cost.tokens(chunk(100, 20_000), 20_000) in (99, 100)


def test_noise_between_near_chunks_is_no_price_of_depth():
    cost = PrefillCost()
    for i in range(40):
        cost.add(12, i * 12, 12 * TOKEN_S * (1 + 0.3 * (i % 3)))
    assert cost.slope == 0.0 and TOKEN_S <= cost.flat <= 1.6 * TOKEN_S


def test_one_disturbed_chunk_changes_nothing_and_a_lasting_rise_counts_at_once():
    cost = PrefillCost()
    for _ in range(8):
        cost.add(100, 0, 0.1)
    cost.add(100, 0, 5.0)
    assert cost.flat == pytest.approx(0.001)
    cost.add(100, 0, 0.3)
    assert cost.flat == pytest.approx(0.003)


def test_nothing_measured_fits_nothing():
    assert PrefillCost().tokens(1.0, 0) == 0 and PrefillCost().seconds(10, 0) == 0.0


# --- beside answers ----------------------------------------------------------------------------------


def test_step_beside_answers_costs_by_its_tiles():
    alone = PrefillCost()
    alone.add(256, 0, 0.256)
    cost = MixedCost(alone)
    for _ in range(3):
        cost.add(16, 12, 0.0, 0.020, 0.030)
    assert cost.tokens(4, 0.0, 0, 0.020, 0.031, most=100) == 12
    assert cost.tokens(4, 0.0, 0, 0.020, 0.043, most=100) == 28  # estimated at 42 ms
    cost.add(32, 28, 0.0, 0.020, 0.060)
    assert cost.tokens(4, 0.0, 0, 0.020, 0.043, most=100) == 12
    assert cost.tokens(4, 0.0, 0, 0.020, 0.019, most=100) == 0


def test_short_prompt_is_priced_by_its_own_tiles(monkeypatch: pytest.MonkeyPatch):
    alone = PrefillCost()
    alone.add(256, 0, 0.256)
    cost = MixedCost(alone)
    cost.add(16, 12, 0.0, 0.020, 0.030)
    tiles, flat = [], cost.flat
    monkeypatch.setattr(cost, "flat", lambda n, decode_s: tiles.append(n) or flat(n, decode_s))
    assert cost.tokens(4, 0.0, 0, 0.020, 10.0, most=9) == 9
    assert set(tiles) == {1}  # not all that would fit into ten seconds


def test_size_that_was_dear_while_others_had_the_machine_is_tried_again():
    alone = PrefillCost()
    alone.add(256, 0, 0.256)
    cost = MixedCost(alone)
    for _ in range(8):
        cost.add(32, 28, 0.0, 0.020, 0.200)
    for _ in range(FORGET - 1):
        cost.add(16, 12, 0.0, 0.020, 0.030)
        assert cost.tokens(4, 0.0, 0, 0.020, 0.043, most=100) == 12
    cost.add(16, 12, 0.0, 0.020, 0.030)
    assert cost.tokens(4, 0.0, 0, 0.020, 0.043, most=100) == 28


def test_running_answers_leave_prompts_a_multiple_of_what_they_take():
    budget = measured()
    budget.begin()
    budget.open(4)
    assert budget.limit(0.02) == ITL_FACTOR * 0.02
    tokens = budget.tokens(0, 4000, False, budget.room, minimum=True)
    assert (tokens + 4) % 16 == 0 and chunk(tokens, 0) <= 1.4 * budget.room
    budget.spend(0, tokens, False)
    assert budget.room < chunk(16, 0)


def test_step_grows_with_a_burst_and_never_with_one_prompt():
    budget = measured()
    usual = ITL_FACTOR * 0.02
    assert [budget.limit(0.02, newcomers) for newcomers in (0, 1, 2, 100)] == [usual, usual, BURST_S, BURST_S]
    assert budget.limit(BURST_S, 100) == ITL_FACTOR * BURST_S  # what answers alone take stays the measure
    assert Budget(target_itl_s=0.05).limit(0.02, 100) == 0.05


def test_deep_in_a_prompt_fewer_tokens_fit_and_never_none():
    budget = measured()
    budget.begin()
    budget.open(4)
    fits = [
        budget.tokens(first, 4000, False, budget.room, minimum=True) for first in (0, 4000, 20_000, 500_000)
    ]
    assert fits == sorted(fits, reverse=True) and fits[-1] == MIXED_PREFILL_TOKENS
    assert budget.tokens(500_000, 4000, False, budget.room, minimum=False) == 0


def test_number_of_answers_never_measured_runs_alone_once_and_others_now_and_then():
    budget = measured(decodes=4)
    budget.begin()
    budget.open(9)
    assert budget.left == 0
    budget.learn(9, [], 0, 0.03)
    for step in range(2 * PROBE + 2):
        budget.begin()
        budget.open(9)
        chunks = [Prefill(0, 7, False)] if budget.left else []
        assert bool(chunks) == (step % (PROBE + 1) != PROBE)
        budget.learn(9, chunks, 0, 0.05)


def test_first_prompt_of_all_is_computed_in_a_chunk_that_measures_what_tokens_cost():
    budget = Budget()
    assert budget.tokens(0, 4000, False, budget.room, minimum=True) == PREFILL_TOKENS


def test_slow_machine_lets_few_answers_run_together():
    budget = Budget()
    for decodes in (1, 2, 4, 8):
        budget.learn(decodes, [], 0, 0.2 * decodes)
    assert budget.max_decodes() in (4, 5, 6, 7)
    assert Budget(max_num_batched_tokens=64).max_decodes() == 64
    assert Budget(target_itl_s=0.05).limit(0.03) == 0.05


def test_only_decode_steps_near_enough_count_as_measured():
    cost = StepCost()
    assert not cost.near(4)
    cost.add(10, 1.0)
    assert [n for n in range(1, 20) if cost.near(n)] == [9, 10, 11, 12]


def test_tile_that_has_begun_is_filled_however_little_room_there_is():
    budget = measured(decodes=4)
    budget.begin()
    budget.open(4)
    few = budget.tokens(0, 400, False, 0.0, minimum=True)
    assert 4 + few == TILE
    assert (
        budget.tokens(20_000, 400, False, 0.0, minimum=True) == MIXED_PREFILL_TOKENS
    )  # there each token counts


def test_measuring_waits_twice_as_long_while_brief_prompts_wait():
    def steps_with_prefill(brief: bool) -> int:
        budget = measured(decodes=4)
        for steps in range(8 * PROBE):
            budget.begin()
            budget.open(4, brief=brief)
            if not budget.left:
                return steps
            budget.learn(4, [Prefill(0, 12, False)], 0, 0.05)
        raise AssertionError("it never measured")

    assert steps_with_prefill(brief=True) == 2 * steps_with_prefill(brief=False)


def test_shared_step_takes_a_few_tokens_alone_however_many_answers_run():
    budget = Budget()
    assert budget.shared_s() == inf
    budget.learn(1, [], 0, 0.016)
    for _ in range(2000):  # none of one token for so long that its cost is forgotten
        budget.learn(20, [], 0, 0.06)
    assert budget.shared_s() == SHARED_TOKENS * 0.016
    assert Budget(target_itl_s=0.05).shared_s() == 0.05


def test_shared_step_is_counted_in_tokens_of_a_free_machine_unless_each_takes_far_longer():
    budget = Budget()
    budget.learn(1, [], 0, 0.016)
    for seconds, limit in ((0.02, SHARED_TOKENS * 0.016), (0.1, SHARED_NOW * 0.1)):
        for _ in range(40):
            budget.learn(1, [], 0, seconds)
        assert budget.shared_s() == limit
