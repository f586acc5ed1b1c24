"""The scheduler shares out a step's tokens and the blocks, so that every sequence ends and none waits for one other."""

from __future__ import annotations

import random
from math import inf

import pytest

from freehold.base.types import Priority, SamplingParams
from freehold.run.engine.schedule.budget import (
    BRIEF_S,
    BURST_S,
    ITL_FACTOR,
    PREFILL_TOKENS,
    SLOW_STEP_S,
    STEP_S,
)
from freehold.run.engine.schedule.scheduler import AGE_S, BYPASS_S, STALL_S
from freehold.run.engine.sequence import Request, ScheduledChunk, TokenOut
from tests.engine.world import LOOK_S, TOKEN_S, World


def cut(batch: list[ScheduledChunk]) -> list[tuple[int, int]]:
    return [(chunk.first, chunk.count) for chunk in batch]


def warm(**options: int) -> World:
    """Return a world that has measured prompts and answers."""
    world = World(**options)
    for _ in range(4):
        world.add(200, answer=8)
    world.finish()
    return world


# --- what a step holds -------------------------------------------------------------------------------


def test_long_prompt_is_cut_into_steps_and_wants_logits_at_its_end_only():
    world = World(max_num_batched_tokens=48)
    world.add(100)
    requested = []
    for expected in ((0, 48), (48, 48), (96, 4)):
        batch = world.scheduler.schedule()
        requested.append(list(batch[0].logit_rows))
        assert cut(batch) == [expected]
        batch[0].seq.num_computed_tokens += batch[0].count
    assert requested == [[], [], [3]]


def test_running_answers_go_on_beside_a_prompt_in_every_step():
    world = warm()
    running = [world.add(20, answer=100) for _ in range(4)]
    world.run(0.2)
    world.add(2000)
    for _ in range(20):
        batch = world.step()
        assert {chunk.seq for chunk in batch} > set(running)


def test_token_that_was_not_taken_holds_its_sequence_back():
    world = World()
    seq = world.add(5)
    world.step()
    seq.pending.append(TokenOut(1))
    assert world.step() == []
    seq.pending.popleft()
    assert cut(world.step()) == [(5, 1)]


def test_interrupted_step_is_computed_again():
    world = World()
    seq = world.add(5)
    assert cut(world.scheduler.schedule()) == [(0, 5)]
    seq.num_computed_tokens = 5
    assert cut(world.scheduler.schedule()) == [(4, 1)]


def test_more_answers_than_a_step_has_tokens_take_turns():
    world = World(max_num_batched_tokens=8)
    seqs = [world.add(4, answer=20) for _ in range(20)]
    world.finish()
    assert all(world.logs[seq].ended < inf for seq in seqs)


def test_answers_that_are_not_taken_do_not_keep_others_from_running():
    world = World(max_num_batched_tokens=4)
    for seq in [world.add(4, answer=20) for _ in range(4)]:
        world.step()
        seq.pending.append(TokenOut(1))
    other = world.add(4, answer=3)
    world.run(1.0)
    assert world.logs[other].ended < inf


# --- how long a step is ------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("running", [1, 4, 16])
@pytest.mark.parametrize("prompt", [4_000, 30_000])
def test_running_answers_keep_their_pace_while_a_long_prompt_is_read(running: int, prompt: int):
    world = warm(blocks=4000)
    answers = [world.add(20, answer=4000) for _ in range(running)]
    world.run(1.0)
    quiet = max(world.logs[answers[0]].gaps[-10:])
    long = world.add(prompt)
    started = world.now
    while world.logs[long].first == inf:
        world.step()
    during = [
        g
        for g, t in zip(world.logs[answers[0]].gaps, world.logs[answers[0]].tokens[1:], strict=True)
        if t > started
    ]
    assert max(during) <= 2.9 * quiet and sorted(during)[-5] < 2.4 * quiet
    alone = prompt * (TOKEN_S + LOOK_S * prompt / 2)
    assert world.logs[long].first < 3 * alone


def test_long_prompts_are_no_burst():
    world = warm(blocks=8000)
    answers = [world.add(20, answer=4000) for _ in range(4)]
    world.run(1.0)
    quiet = max(world.logs[answers[0]].gaps[-10:])
    length = int(2 * BRIEF_S / TOKEN_S)
    for _ in range(3):
        world.add(length, answer=4)
    world.run(1.0)
    assert max(world.logs[answers[0]].gaps) < 2.9 * quiet < BURST_S


def test_burst_is_read_in_large_pieces_one_prompt_after_another():
    world = warm(blocks=4000)
    answers = [world.add(20, answer=4000) for _ in range(2)]
    world.run(1.0)
    burst = [world.add(256, answer=200) for _ in range(16)]
    steps = []
    while not burst[-1].prefilled:
        steps += [[chunk.count for chunk in world.step() if chunk.count > 1]]
    assert all(sum(counts) >= 128 for counts in steps[:7] if counts)
    assert all(len(counts) <= 3 for counts in steps)
    assert max(world.logs[answers[0]].gaps) < 1.3 * BURST_S
    assert world.logs[burst[7]].first < 1.5 * 8 * 256 * TOKEN_S


def test_target_for_a_running_answers_pace_is_kept():
    world = World(target_itl_s=0.1)
    answer = world.add(20, answer=1000)
    world.run(1.0)
    world.add(4000)
    world.run(2.0)
    assert 0.08 < sorted(world.logs[answer].gaps)[-5] < 0.11


def test_prompts_alone_take_steps_that_a_cancellation_can_wait_for():
    world = World(blocks=4000)
    world.add(30_000)
    steps = []
    for _ in range(40):
        before = world.now
        world.step()
        steps.append(world.now - before)
    assert max(steps) < 1.1 * SLOW_STEP_S and max(steps[:10]) < 1.2 * STEP_S
    assert min(chunk.count for chunk in world.scheduler.schedule()) >= PREFILL_TOKENS


def test_steps_with_prompts_are_whole_tiles():
    world = warm()
    for _ in range(3):
        world.add(20, answer=200)
    world.run(0.3)
    world.add(4000)
    sizes = [sum(chunk.num_tokens for chunk in world.step()) for _ in range(20)]
    assert all(size % 16 == 0 for size in sizes) and ITL_FACTOR > 1


def test_disturbed_step_does_not_shrink_the_next_ones():
    world = warm()
    for _ in range(4):
        world.add(20, answer=400)
    world.run(0.5)
    world.add(8000)
    usual = [sum(chunk.num_tokens for chunk in world.step()) for _ in range(10)][-1]
    batch = world.scheduler.schedule()
    world.scheduler.learn(batch, 3.0)
    assert sum(chunk.num_tokens for chunk in world.scheduler.schedule()) == usual


# --- whose prompt goes first -------------------------------------------------------------------------


def test_short_prompts_pass_a_long_one_and_it_keeps_a_quarter():
    world = warm(blocks=4000)
    long = world.add(20_000, answer=1)
    shorts = []
    for _ in range(60):
        shorts.append(world.add(200, answer=1))
        world.run(0.2)  # more than the machine can compute: 0.14 s each, and the long one
    waits = [world.logs[s].first for s in shorts]
    assert sum(w < 1.0 for w in waits) > 50
    assert long.num_computed_tokens > 0.12 * 20_000
    world.finish()
    assert world.logs[long].ended < inf


def test_tenants_share_the_machine_whatever_they_ask():
    world = warm(blocks=10_000)
    for _ in range(200):
        world.add(400, answer=20, tenant="greedy")
    for i in range(20):
        world.add(400, answer=20, tenant="modest")
        if i == 9:
            world.run(3.0)
    world.run(12.0)
    ended = {
        tenant: sum(s.request.tenant == tenant and log.ended < inf for s, log in world.logs.items())
        for tenant in ("greedy", "modest")
    }
    assert sum(ended.values()) > 20 and 0.8 < ended["modest"] / ended["greedy"] < 1.3


def test_tenant_who_was_away_saved_nothing_up():
    world = warm(blocks=10_000)
    for _ in range(100):
        world.add(400, answer=5, tenant="steady")
    world.run(5.0)
    for _ in range(50):
        world.add(400, answer=5, tenant="late")
    before = sum(log.ended < inf for s, log in world.logs.items() if s.request.tenant == "steady")
    world.run(8.0)
    after = sum(log.ended < inf for s, log in world.logs.items() if s.request.tenant == "steady")
    late = sum(log.ended < inf for s, log in world.logs.items() if s.request.tenant == "late")
    assert 0.6 < late / (after - before) < 1.7


# --- priorities --------------------------------------------------------------------------------------


def test_batch_work_takes_what_interactive_work_leaves():
    world = warm(blocks=4000)
    batch = [world.add(400, answer=2000, priority="batch") for _ in range(30)]
    world.run(15.0)
    assert all(seq.generated for seq in batch)
    answer = world.add(100, answer=100)
    world.run(5.0)
    assert world.logs[answer].first < 0.3
    assert max(world.logs[answer].gaps[20:]) < 0.04  # of 16 ms alone, and 74 ms with all the others
    assert world.logs[answer].ended < inf


def test_many_batch_prompts_that_wait_take_no_more_turns_than_one():
    world = warm(blocks=10_000)
    for _ in range(10):
        world.add(1000, answer=5, priority="batch")
    world.run(1.0)
    seq = world.add(1500, answer=1)
    alone = 1500 * (TOKEN_S + LOOK_S * 750)
    world.finish()
    assert world.logs[seq].first < 2 * alone


def test_batch_work_gets_a_turn_under_any_load():
    world = warm(blocks=4000)
    batch = world.add(50, answer=10, priority="batch")
    while world.logs[batch].ended == inf:
        if len(world.scheduler.live) < 6:
            world.add(4000, answer=5)
        world.step()
        assert world.now < 15 * (AGE_S + 1)


def test_interactive_work_takes_blocks_from_batch_work_which_ends_all_the_same():
    world = warm(blocks=20)
    batch = [world.add(250, answer=60, priority="batch") for _ in range(2)]
    world.run(1.0)
    answer = world.add(500, answer=40)
    world.run(1.5)
    assert world.logs[answer].first < 1.0
    world.finish()
    assert all(world.logs[seq].ended < inf for seq in batch) and world.scheduler.preemption.count


# --- the same prefix ---------------------------------------------------------------------------------


def test_prompts_that_begin_alike_are_read_once():
    world = warm()
    system = list(range(10_000, 12_000))
    for i in range(8):
        world.add([*system, 50_000 + i, 3, 4])
    before = world.tokens_computed
    world.finish()
    assert world.tokens_computed - before < 2000 + 8 * (3 + 32 + 10)


def test_waiting_for_a_prefix_ends_when_its_reader_goes():
    world = warm()
    system = list(range(10_000, 14_000))
    first, second = world.add([*system, 1]), world.add([*system, 2])
    world.step()
    assert not second.block_table
    world.cancel(first)
    world.finish()
    assert world.logs[second].ended < inf


def test_embedding_waits_for_no_prefix_for_it_would_not_take_it_over():
    world = warm()
    system = list(range(10_000, 14_000))
    world.add([*system, 1])
    world.step()
    embedding = world.add(system[:3000], embed=True)
    world.step()
    assert embedding.block_table


def test_prompts_that_wait_for_a_block_are_not_priced_in_each_step(monkeypatch: pytest.MonkeyPatch):
    world = warm(blocks=20)
    for _ in range(100):
        world.add(40, answer=200)
    world.run(2.0)
    assert world.scheduler.live.waiting > 80
    budget, priced = world.scheduler.budget, []
    tokens = budget.tokens
    monkeypatch.setattr(budget, "tokens", lambda *args, **more: priced.append(args) or tokens(*args, **more))
    counts = []
    for _ in range(5):
        priced.clear()
        world.step()
        counts.append(len(priced))
    assert min(counts) < 20  # all are tried again in one step of several


def test_short_prompt_does_not_wait_for_all_of_a_long_one_it_begins_like():
    world = warm(blocks=4000)
    system = list(range(10_000, 11_000))
    long = world.add([*system, *range(20_000, 40_000)])
    short = world.add([*system, 1, 2, 3])
    while world.logs[short].first == inf:
        world.step()
    assert long.num_computed_tokens < 3000


def test_answers_to_one_prompt_share_its_blocks():
    world = warm()
    parent = world.add(1000, answer=30)
    children = [world.add(list(parent.request.prompt), answer=30, parent=parent) for _ in range(3)]
    before = world.tokens_computed
    while not all(child.generated for child in children):
        world.step()
    assert world.tokens_computed - before < 1000 + 4 * 10
    assert world.blocks.live < 32 + 4 * 3
    world.finish()
    assert world.blocks.live == 0


# --- when blocks run out -----------------------------------------------------------------------------


def test_older_sequence_takes_blocks_from_the_youngest_which_starts_again():
    world = World(blocks=6)
    old, young = world.add(60, answer=80), world.add(60, answer=80)
    world.finish()
    assert world.scheduler.preemption.count > 0 == old.preempted
    assert len(young.tokens) == 140 and world.blocks.live == 0


def test_two_that_do_not_fit_together_do_not_take_turns_in_starting_again():
    world = World(blocks=40)
    for _ in range(4):
        world.add(200, answer=1000)
    world.finish()
    assert world.scheduler.preemption.count <= 4 * 5
    assert world.tokens_computed < 4 * 1200 * 2


@pytest.mark.parametrize("tenants", ["aa", "ab", "ba"])
def test_answers_whose_turn_it_is_and_that_find_no_block_leave_the_turn_to_those_that_hold_them(tenants: str):
    """One slow grammar a step: the younger answer, with less service, waits for what the older one holds."""
    world = World(blocks=3)
    old = world.add(50, answer=40, tenant=tenants[0], grammar_s=0.3)
    world.step()
    young = world.add(20, answer=40, tenant=tenants[1], grammar_s=0.03)
    world.finish(1000)
    assert old.done and young.done


def test_stalled_reader_is_passed_over_only_after_a_while():
    world = World(blocks=2)
    old = world.add(60)
    world.step()
    old.pending.append(TokenOut(1))
    young = world.add(40)
    old.pending_since = world.now
    assert world.step() == []
    world.now += STALL_S + 0.1
    assert [chunk.seq for chunk in world.step()] == [young] and old.block_table == []


def test_small_requests_pass_one_that_finds_no_room_but_not_for_ever():
    world = warm(blocks=100)
    world.add(1000, answer=2000)
    world.run(1.0)
    big = world.add(2000, answer=10)
    while world.logs[big].first == inf:
        if len(world.scheduler.live) < 12:
            world.add(100, answer=100)
        world.step()
        assert world.now < 60
    assert world.logs[big].first > BYPASS_S


def test_request_that_fills_the_pool_is_served_under_any_load():
    world = warm(blocks=64)
    big = world.add(1500, answer=500)
    while world.logs[big].ended == inf:
        if len(world.scheduler.live) < 20:
            world.add(300, answer=200)
        world.step()
        assert world.now < 300
    world.finish(1_000_000)


@pytest.mark.parametrize("seed", range(6))
def test_every_admitted_request_ends_and_leaves_nothing(seed: int):
    draw = random.Random(seed)
    world = World(blocks=draw.choice([40, 100, 400]), max_num_batched_tokens=draw.choice([8, 64, 512]))
    shared = list(range(100_000, 100_400))
    for _ in range(60):
        own = [draw.randrange(1 << 20) for _ in range(draw.choice([5, 50, 400]))]
        seq = world.add(
            [*shared[: draw.choice([0, 100, 400])], *own],
            answer=draw.choice([1, 10, 200]),
            priority=draw.choice(["interactive", "batch"]),
            tenant=draw.choice(["a", "b", "c"]),
        )
        for _ in range(draw.randrange(20)):
            world.step()
        if draw.random() < 0.1 and not seq.done:
            world.cancel(seq)
    world.finish()
    assert world.blocks.live == 0 and world.blocks.available == world.blocks.count
    assert all(seq.done for seq in world.logs)


# --- the wait ----------------------------------------------------------------------------------------


def test_expected_wait_is_about_what_the_next_one_waits():
    world = warm(blocks=10_000)
    for _ in range(30):
        world.add(1000, answer=5)
    for _ in range(10):
        world.step()
    expected = world.scheduler.wait.seconds()
    last = world.add(1500, answer=1)  # the longest, so that all others go before
    world.finish()
    first = world.logs[last].first
    assert 0.5 < first / expected < 2.0


def test_wait_told_before_anything_was_measured_is_no_shorter_than_the_truth():
    world = World(blocks=10_000, assumed_token_s=3 * TOKEN_S)
    seqs = [world.add(256, answer=1) for _ in range(20)]
    world.step()
    expected = world.scheduler.wait.seconds()
    world.finish()
    truth = max(world.logs[s].first for s in seqs)
    assert truth <= expected < 4 * truth


@pytest.mark.parametrize(
    ("others", "prompt", "tenant"),
    [("interactive", 20, ""), ("interactive", 1500, "other"), ("batch", 1500, "")],
)
def test_request_whose_turn_is_first_is_told_no_wait(others: Priority, prompt: int, tenant: str):
    world = warm(blocks=10_000)
    for _ in range(10):
        world.add(1000, answer=5, priority=others)
    for _ in range(3):
        world.step()
    asked = Request((1,) * prompt, SamplingParams(), 0, 1, client=tenant)
    assert world.scheduler.wait.seconds(asked) == 0.0 and world.scheduler.wait.seconds() > 5.0


def test_cancelled_sequence_gives_its_blocks_back_at_once():
    world = warm()
    before = world.blocks.available
    seqs = [world.add(1000) for _ in range(3)]
    world.step()
    for seq in seqs:
        world.cancel(seq)
    assert world.blocks.live == 0 and world.blocks.available == before


def test_time_in_the_queue_ends_when_a_sequence_first_holds_blocks():
    world = World(blocks=10)
    first, second = world.add(250, answer=20), world.add(250, answer=20)
    world.finish()
    assert first.usage.queue_s == 0.0
    assert second.usage.queue_s == pytest.approx(world.logs[first].ended, abs=0.3)
