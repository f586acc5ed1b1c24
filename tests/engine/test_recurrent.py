"""A recurrent state is taken over only where a snapshot was kept, and written only where nothing else reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.run.engine.cache import disk as tier_module
from freehold.run.engine.cache.recurrent import Recurrent, snapshot_points
from freehold.run.engine.cache.window import SlidingWindow
from freehold.run.engine.sequence import Request, ScheduledChunk, Sequence
from tests.engine.rig import GREEDY, check_books, sequence
from tests.engine.scripted import ScriptedRig, sums

PROMPT = [
    10 + 17 * i % 250 for i in range(200)
]  # six blocks and a part; a snapshot is due after 64, 128 and 192


def rig(states: int = 16, disk: Path | None = None) -> ScriptedRig:
    return ScriptedRig(32, window=40, window_blocks=100, states=states, rows=512, disk=disk)


def computed(rig: ScriptedRig, tokens: list[int]) -> Sequence:
    """Compute all tokens of a new sequence."""
    seq = sequence(tokens)
    assert np.array_equal(rig.step(seq)[0], sums(tokens)[-1])
    return seq


def kind(rig: ScriptedRig) -> Recurrent:
    found = rig.blocks.kinds[-1]
    assert isinstance(found, Recurrent)
    return found


def with_draft(rig: ScriptedRig, seq: Sequence, draft: list[int], held: int) -> None:
    """Verify draft tokens behind the newest one, of which the first `held` are accepted."""
    first = seq.num_computed_tokens
    room = rig.blocks.stretch(seq, len(seq.tokens) + len(draft)) - len(seq.tokens)
    assert room >= len(draft)
    rig.blocks.prepare(seq, first, 1, len(draft))
    rig.runner.run([ScheduledChunk(seq, first, 1, tuple(draft))], choose=False)
    seq.tokens += [*draft[:held], 9]
    rig.blocks.publish(seq, first + 1 + held)


@pytest.mark.parametrize(
    ("shared", "found"), [(199, 192), (192, 192), (191, 128), (130, 128), (70, 64), (63, 0)]
)
def test_hit_goes_back_to_the_snapshot_at_or_before_the_tokens_that_agree(shared: int, found: int):
    pool = rig()
    pool.blocks.retire(computed(pool, PROMPT))
    other = computed(pool, [*PROMPT[:shared], 3, 4])
    assert other.num_cached_tokens == found


def test_hit_ends_where_every_kind_has_what_it_needs():
    pool = rig()
    first = computed(pool, PROMPT)
    third = first.block_table[2]
    pool.blocks.retire(first)
    window = pool.blocks.kinds[1]
    assert isinstance(window, SlidingWindow)
    window.free(third)  # as if another block had taken it: the snapshot after 128 is of no use now
    assert computed(pool, [*PROMPT[:191], 3]).num_cached_tokens == 64


def test_next_turn_goes_on_at_the_last_token_of_the_answer():
    pool = rig()
    pool.blocks.retire(computed(pool, PROMPT))  # it ends inside a block
    assert computed(pool, [*PROMPT, 3, 4]).num_cached_tokens == len(PROMPT)


def test_snapshots_are_due_where_turns_end_and_before_the_last_token():
    tokens = [5] * 50 + [7] + [5] * 60 + [7] + [5] * 90
    request = Request(tuple(tokens), GREEDY, 0, 10, stop_ids=frozenset([7]))
    assert snapshot_points(request, 2) == {32, 96, 192}
    assert snapshot_points(Request((5,) * 32, GREEDY, 0, 10), 2) == frozenset()


def test_snapshot_is_taken_where_another_sequence_waits():
    pool, first = rig(), sequence(PROMPT)
    first.awaited_until = 96
    pool.step(first)
    assert computed(pool, [*PROMPT[:100], 3]).num_cached_tokens == 96


def test_refused_draft_tokens_cost_no_state():
    pool = rig()
    seq = computed(pool, PROMPT)
    seq.tokens.append(9)
    with_draft(pool, seq, [1, 2, 3], held=0)
    assert seq.num_computed_tokens == len(seq.tokens) - 1
    with_draft(pool, seq, [1, 2, 3], held=3)
    assert seq.num_computed_tokens == len(seq.tokens) - 1
    assert np.array_equal(pool.step(seq)[0], sums(seq.tokens)[-1])


def test_tokens_accepted_before_a_refused_one_are_computed_again():
    pool = rig()
    seq = computed(pool, PROMPT)
    seq.tokens.append(9)
    with_draft(pool, seq, [1, 2, 3, 4], held=2)
    assert len(seq.tokens) - seq.num_computed_tokens == 3
    assert np.array_equal(pool.step(seq)[0], sums(seq.tokens)[-1])


def test_state_after_each_token_of_a_short_draft_is_kept():
    pool = rig()
    seq = computed(pool, PROMPT)
    seq.tokens.append(9)
    with_draft(pool, seq, [1, 2, 3], held=2)
    assert len(seq.tokens) - seq.num_computed_tokens == 1
    assert np.array_equal(pool.step(seq)[0], sums(seq.tokens)[-1])


def test_no_draft_without_a_slot_for_its_state():
    pool = rig(states=1)
    seq = computed(pool, PROMPT)
    seq.tokens.append(9)
    assert pool.blocks.stretch(seq, len(seq.tokens) + 3) == len(seq.tokens)


def test_fork_shares_the_state_until_either_writes():
    pool = rig()
    parent = computed(pool, PROMPT)
    children = [sequence([*PROMPT, i]) for i in (1, 2)]
    for child in children:
        assert pool.blocks.reserve(child)
        pool.blocks.fork(parent, child)
        assert child.num_computed_tokens == len(PROMPT)
    assert len({kind(pool)._seqs[seq].slot for seq in (parent, *children)}) == 1
    parent.tokens.append(3)
    pool.step(parent, *children)
    assert len({kind(pool)._seqs[seq].slot for seq in (parent, *children)}) == 3
    check_books(pool.blocks, [parent, *children])


def test_one_slot_a_sequence_suffices():
    pool = rig(states=2)
    seqs = [computed(pool, PROMPT), computed(pool, [*PROMPT[:150], 3])]
    assert not pool.blocks.reserve(sequence([1]))
    assert pool.blocks.reservable(sequence([1]), seqs[:1])
    for i in range(70):  # over block ends where snapshots would be due
        for seq in seqs:
            seq.tokens.append(i)
        pool.step(*seqs)
    check_books(pool.blocks, seqs)


def test_rows_not_accounted_for_go_back_to_a_snapshot():
    pool = rig()
    seq = computed(pool, PROMPT)
    seq.tokens += [1, 2, 3]
    assert pool.blocks.grow(seq, len(seq.tokens))
    pool.blocks.prepare(seq, 200, 3)
    pool.runner.run([ScheduledChunk(seq, 200, 3)], choose=False)
    pool.blocks.publish(seq, 200)  # an interrupt: the state after 200 tokens was written over
    assert seq.num_computed_tokens == 192 and len(seq.block_table) == 6
    check_books(pool.blocks, [seq])
    assert np.array_equal(pool.step(seq)[0], sums(seq.tokens)[-1])


# --- the disk ----------------------------------------------------------------------------------------


def restarted(folder: Path, tokens: list[int]) -> Sequence:
    """Compute tokens with a new pool over a folder; return the sequence."""
    pool = rig(disk=folder)
    seq = computed(pool, tokens)
    check_books(pool.blocks, [seq])
    pool.blocks.close()
    return seq


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a pool, now gone, has kept PROMPT."""
    monkeypatch.setattr(tier_module, "KEPT_BLOCKS", 1)
    pool = rig(disk=tmp_path)
    pool.blocks.retire(computed(pool, PROMPT))
    pool.blocks.close()
    return tmp_path


def test_restart_finds_blocks_up_to_the_last_state(folder: Path):
    assert len(list(folder.glob("*.kv"))) == 6 and len(list(folder.glob("*.state"))) == 3
    assert restarted(folder, [*PROMPT, 3]).num_cached_tokens == 192
    assert restarted(folder, [*PROMPT[:191], 3]).num_cached_tokens == 128
    assert restarted(folder, [*PROMPT[:60], 3]).num_cached_tokens == 0


def test_damaged_state_is_removed_and_the_one_before_it_serves(folder: Path):
    last = max(folder.glob("*.state"), key=lambda path: path.stat().st_size)  # its file lists the most tokens
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    assert restarted(folder, [*PROMPT, 3]).num_cached_tokens == 128
    assert restarted(folder, [*PROMPT, 3]).num_cached_tokens == 192  # it was computed and written again


def test_missing_block_ends_the_hit_at_a_state_before_it(folder: Path):
    blocks = sorted(folder.glob("*.kv"), key=lambda path: path.stat().st_size)
    blocks[4].unlink()
    assert restarted(folder, [*PROMPT, 3]).num_cached_tokens == 128


def test_state_in_memory_is_not_read_again(folder: Path):
    pool = rig(disk=folder)
    computed(pool, [*PROMPT, 3])
    read = pool.blocks.disk_tokens
    assert computed(pool, [*PROMPT, 4]).num_cached_tokens == 6 * SIZE and pool.blocks.disk_tokens == read
