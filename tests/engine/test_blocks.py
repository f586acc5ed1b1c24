"""Blocks are shared while they live, kept while there is room, and written by one sequence only."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.run.engine import Engine
from freehold.run.engine.cache.blocks import BlockManager, blocks_for, common_prefix
from freehold.run.engine.sequence import Sequence
from freehold.run.models.load import LoadedModel
from tests.engine.rig import GREEDY, Rig, sequence

PROMPT = [17 * i % 250 + 5 for i in range(70)]


def compute(blocks: BlockManager, seq: Sequence, to: int | None = None) -> Sequence:
    """Pretend that a step computed all tokens of a sequence, or those before `to`."""
    to = len(seq.tokens) if to is None else to
    assert blocks.grow(seq, to)
    blocks.publish(seq, to)
    return seq


def run(blocks: BlockManager, tokens: list[int], tenant: str = "") -> Sequence:
    """Begin a sequence: what is known is shared, the rest computed."""
    seq = sequence(tokens, tenant)
    blocks.adopt(seq)
    return compute(blocks, seq)


# --- counting ----------------------------------------------------------------------------------------


def test_blocks_are_given_whole_or_not_at_all():
    blocks = BlockManager(3)
    a, b = sequence([1] * 40), sequence([2] * 40)
    assert blocks.grow(a, 40) and len(a.block_table) == blocks_for(40) == 2
    assert not blocks.grow(b, 40) and b.block_table == []
    blocks.release(a)
    assert blocks.available == 3 and blocks.grow(b, 40)


def test_blocks_are_free_live_or_cached():
    blocks = BlockManager(6)
    a = run(blocks, [*range(70)])
    assert (blocks.available, blocks.live, blocks.cached) == (3, 3, 0)
    blocks.retire(a)
    assert (blocks.available, blocks.live, blocks.cached) == (6, 0, 3)


def test_copy_of_a_shared_block_counts_among_what_is_missing():
    blocks = BlockManager(4)
    parent, child = run(blocks, [*range(40)]), sequence([*range(70)])
    blocks.fork(parent, child)
    assert blocks.missing(child, 40) == 1 and blocks.missing(child, 70) == 2
    blocks.grow(sequence([1]), 1)
    assert not blocks.grow(child, 70) and len(child.block_table) == 2


def test_common_prefix_counts_equal_leading_items():
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([], [1]) == 0


# --- sharing -----------------------------------------------------------------------------------------


def test_live_sequences_share_the_full_blocks_of_what_they_begin_with():
    blocks = BlockManager(10)
    a = run(blocks, [*range(70)])
    b = sequence([*range(64), 900, 901])
    assert blocks.match(b) == 64
    blocks.adopt(b)
    assert (b.block_table, b.num_computed_tokens, b.num_cached_tokens) == (a.block_table[:2], 64, 64)
    assert blocks.live == 3


def test_shared_blocks_are_counted_as_sequences_come_and_go():
    blocks = BlockManager(20)

    def several() -> int:
        return sum(holders > 1 for holders in blocks.pool.holders)

    parent = run(blocks, [*range(70)])
    others = [run(blocks, [*range(40), n]) for n in (7, 8)]
    assert blocks.stats["blocks_shared"] == several() == 1
    child = sequence([*range(70)])
    blocks.fork(parent, child)
    assert blocks.stats["blocks_shared"] == several() == 3
    for seq in (child, *others, parent):
        blocks.retire(seq)
        assert blocks.stats["blocks_shared"] == several()
    assert several() == 0


def test_part_of_a_block_is_taken_by_copy():
    blocks = BlockManager(10)
    a = run(blocks, [*range(64)])
    b = sequence([*range(50), 900])
    assert blocks.match(b) == 50
    blocks.adopt(b)
    assert (
        b.num_computed_tokens == 50
        and b.block_table[0] == a.block_table[0]
        and b.block_table[1] not in a.block_table
    )
    assert (
        blocks.take_copies()["full"] == [(a.block_table[1], b.block_table[1])]
        and blocks.take_copies()["full"] == []
    )


def test_last_token_is_computed_anew():
    blocks = BlockManager(10)
    blocks.retire(run(blocks, [*range(64)]))
    b = sequence([*range(64)])
    blocks.adopt(b)
    assert b.num_computed_tokens == 63 and len(b.block_table) == 2


def test_what_a_sequence_ended_with_is_kept_to_the_last_token():
    blocks = BlockManager(10)
    blocks.retire(run(blocks, [*range(50)]))
    b, c = sequence([*range(50), 99]), sequence([*range(40), 99])
    assert (blocks.match(b), blocks.match(c)) == (50, 40)


def test_longer_end_takes_the_place_of_a_shorter_one():
    blocks = BlockManager(10)
    for end in (40, 50, 45, 64):
        blocks.retire(run(blocks, [*range(end)]))
        assert blocks.cached == 2
    assert blocks.match(sequence([*range(64), 1])) == 64


def test_twins_computed_side_by_side_become_one():
    blocks = BlockManager(10)
    a, b = sequence([*range(70)]), sequence([*range(64), 900, 901])
    assert blocks.grow(a, 70) and blocks.grow(b, 66) and blocks.live == 6
    blocks.publish(a, 70)
    blocks.publish(b, 66)
    assert (
        a.block_table[:2] == b.block_table[:2] and a.block_table[2] != b.block_table[2] and blocks.live == 4
    )
    blocks.retire(a)
    blocks.retire(b)
    assert blocks.live == 0 and blocks.cached == 4


def test_tenants_do_not_see_each_others_blocks():
    blocks = BlockManager(10)
    blocks.retire(run(blocks, [*range(64)], "a"))
    assert blocks.match(sequence([*range(65)], "b")) == 0
    assert blocks.match(sequence([*range(65)])) == 0
    assert blocks.match(sequence([*range(65)], "a")) == 64


def test_published_blocks_of_a_preempted_sequence_stay():
    blocks = BlockManager(4)
    a = run(blocks, [*range(70)])
    blocks.release(a)
    assert (a.block_table, a.num_computed_tokens, blocks.cached) == ([], 0, 2)
    blocks.adopt(a)
    assert a.num_computed_tokens == 64


def test_resumed_answer_does_not_count_as_cached():
    blocks = BlockManager(4)
    a = run(blocks, [*range(70)])
    a.tokens.append(1)
    blocks.release(a)
    a.num_cached_tokens = 5
    blocks.adopt(a)
    assert a.num_computed_tokens == 64 and a.num_cached_tokens == 5


# --- eviction ----------------------------------------------------------------------------------------


def test_cached_blocks_yield_to_a_live_sequence():
    blocks = BlockManager(2)
    blocks.retire(run(blocks, [1] * 64))
    assert blocks.available == 2 and blocks.grow(sequence([2] * 64), 64) and blocks.available == 0


def test_longest_unused_end_is_evicted_first():
    blocks = BlockManager(4)
    old, new = [*range(64)], [*range(100, 164)]
    blocks.retire(run(blocks, old))
    blocks.retire(run(blocks, new))
    blocks.retire(run(blocks, [*old, 7][:64]))  # used again
    assert blocks.grow(sequence([9] * 32), 32)
    assert blocks.match(sequence([*new, 1])) == 32 and blocks.match(sequence([*old, 1])) == 64


def test_what_live_sequences_share_is_never_evicted():
    blocks = BlockManager(3)
    run(blocks, [*range(64)])
    assert not blocks.grow(sequence([9] * 64), 64)
    assert blocks.match(sequence([*range(65)])) == 64


def test_last_block_to_be_had_is_taken_over_instead_of_copied():
    blocks = BlockManager(2)
    blocks.retire(run(blocks, [*range(50)]))
    b = sequence([*range(50), 99])
    blocks.adopt(b)
    assert b.num_computed_tokens == 50 and blocks.take_copies()["full"] == [] and blocks.available == 0


def test_copy_from_a_block_comes_before_the_copy_to_it():
    blocks = BlockManager(3)
    for begin in (0, 100):
        blocks.retire(run(blocks, [*range(begin, begin + 20)]))
    a, b = sequence([*range(20), 99]), sequence([*range(100, 120), 99])
    blocks.adopt(a)
    blocks.adopt(b)  # in the block that `a` is a copy of
    assert blocks.take_copies()["full"] == [(0, 2), (1, 0)] and (a.block_table, b.block_table) == ([2], [0])


def test_guesses_take_blocks_only_while_there_are_some():
    blocks = BlockManager(3)
    a = run(blocks, [*range(40)])
    run(blocks, [900])
    assert blocks.stretch(a, 200) == 64


def test_blocks_of_rejected_guesses_are_free_after_their_step():
    blocks = BlockManager(4)
    a = run(blocks, [*range(30)])
    free = blocks.available
    assert blocks.stretch(a, 100) == 100 and blocks.available < free
    a.tokens.append(30)
    blocks.publish(a, 30, drafts=70)
    assert len(a.block_table) == 1 and blocks.available == free


# --- forks -------------------------------------------------------------------------------------------


def forked(blocks: BlockManager, parent: Sequence) -> Sequence:
    child = sequence(list(parent.tokens))
    blocks.fork(parent, child)
    return child


def test_fork_shares_all_blocks_and_the_first_to_write_copies_its_own():
    blocks = BlockManager(10)
    parent = run(blocks, [*range(70)])
    child = forked(blocks, parent)
    assert child.block_table == parent.block_table and blocks.live == 3
    parent.tokens.append(1)
    child.tokens.append(2)
    shared = parent.block_table[2]
    assert blocks.grow(parent, 71) and blocks.grow(child, 71)
    assert (
        blocks.take_copies()["full"] == [(shared, parent.block_table[2])] and child.block_table[2] == shared
    )
    assert parent.block_table[:2] == child.block_table[:2] and blocks.live == 4


def test_fork_that_ends_early_leaves_the_shared_block_to_the_other():
    blocks = BlockManager(10)
    parent = run(blocks, [*range(70)])
    child = forked(blocks, parent)
    blocks.retire(child)
    assert blocks.live == 3
    parent.tokens.append(1)
    compute(blocks, parent, 71)
    assert blocks.take_copies()["full"] == [] and blocks.live == 3
    blocks.retire(parent)
    assert (blocks.live, blocks.cached) == (0, 3)


def test_no_block_for_a_copy_is_no_block_at_all():
    blocks = BlockManager(3)
    parent = run(blocks, [*range(70)])
    child = forked(blocks, parent)
    parent.tokens.append(1)
    assert (
        not blocks.grow(parent, 71)
        and parent.block_table == child.block_table
        and blocks.take_copies()["full"] == []
    )


# --- bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "sliding"])
def test_forks_go_their_own_ways_to_the_bits_of_a_recompute(name: str, request: pytest.FixtureRequest):
    model: LoadedModel = request.getfixturevalue(name)
    rig = Rig(model, 12)
    parent = sequence(PROMPT[:40])
    rig.step(parent)
    children = [forked(rig.blocks, parent) for _ in range(3)]
    seqs = [parent, *children]
    for n in range(30):
        for i, seq in enumerate(seqs):
            seq.tokens.append(5 + i * 31 + n)
        rows = rig.step(*seqs)
    for seq, row in zip(seqs, rows, strict=True):
        fresh = Rig(model, 12)
        assert np.array_equal(fresh.step(sequence(list(seq.tokens)))[0], row)
        rig.blocks.retire(seq)
    assert rig.blocks.live == 0


@pytest.mark.parametrize("shared", [10, 32, 50, 64, 69])
def test_prefix_of_a_running_sequence_gives_the_bits_of_a_recompute(model: LoadedModel, shared: int):
    rig, fresh = Rig(model, 12), Rig(model, 12)
    first, other = sequence(PROMPT), sequence([*PROMPT[:shared], 99, 98])
    rig.step(first)
    row = rig.step(other)[0]
    assert other.num_cached_tokens == min(shared, 64)
    assert np.array_equal(row, fresh.step(sequence(list(other.tokens)))[0])
    first.tokens.append(7)  # the sharer's bits are as they were
    other.tokens.append(8)
    rows = rig.step(first, other)
    for seq, row in zip((first, other), rows, strict=True):
        assert np.array_equal(row, Rig(model, 12).step(sequence(list(seq.tokens)))[0])


def test_second_answer_shares_the_prompt_of_one_that_still_runs(model: LoadedModel):
    engine = Engine(model, context=256)
    first = engine.generate(PROMPT, GREEDY, max_tokens=30)
    head = [next(first).id for _ in range(3)]
    second = engine.generate([*PROMPT, 9], GREEDY, max_tokens=5)
    made = [out.id for out in second]
    assert second.usage.cached_tokens == 64
    assert [*head, *(out.id for out in first)] == [
        out.id for out in Engine(model, context=256).generate(PROMPT, GREEDY, max_tokens=30)
    ]
    assert made == [out.id for out in Engine(model, context=256).generate([*PROMPT, 9], GREEDY, max_tokens=5)]
