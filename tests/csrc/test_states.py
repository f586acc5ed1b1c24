"""Slots of recurrent states are read and written whole, never beyond; pieces that do not fit a step are refused."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

POOL = native.Threads(1)
LAYERS = [(0, 0, 0), (1, 32, 32), (0, 0, 0)]
STATES = [(6, 20), (0, 0), (0, 16)]
SLOT_BYTES = 4 * ((16 + 32) + 16)  # each part of a layer padded to 64 bytes


def cache(slots: int = 3) -> native.KvCache:
    return native.KvCache(LAYERS, 4, "f32", states=STATES, slots=slots)


def test_a_slot_reads_back_as_it_was_written():
    it = cache()
    assert (it.slots, it.bytes_per_slot) == (3, SLOT_BYTES)
    contents = np.random.default_rng(1).integers(0, 256, (3, SLOT_BYTES), dtype=np.uint8)
    for slot, content in enumerate(contents):
        it.write_state(slot, content)
    for slot, content in enumerate(contents):
        assert np.array_equal(it.read_state(slot), content)


@pytest.mark.parametrize("slot", [-1, 3, 1 << 40])
def test_a_slot_that_is_not_there_is_refused(slot: int):
    for call in (
        lambda: cache().read_state(slot),
        lambda: cache().write_state(slot, np.zeros(SLOT_BYTES, np.uint8)),
    ):
        with pytest.raises(UsageError, match=f"no slot {slot}; there are 3"):
            call()


def test_a_state_of_another_size_is_refused():
    with pytest.raises(UsageError, match=f"a slot has {SLOT_BYTES} bytes, got 8"):
        cache().write_state(0, np.zeros(8, np.uint8))


def test_layers_without_heads_take_no_bytes_of_a_block():
    alone = native.KvCache([LAYERS[1]], 1, "f32")
    assert cache().bytes_per_block == alone.bytes_per_block
    assert native.KvCache([(0, 0, 0)], 4, states=[(0, 16)], slots=1).bytes_per_block == 0


@pytest.mark.parametrize(
    ("states", "slots", "named"),
    [
        (STATES[:2], 1, "sizes of a state for each layer"),
        ([(0, 0)] * 3, 1, "no layer keeps a state"),
        ([(-1, 0), *STATES[1:]], 1, "layer 0 has a state out of range"),
        (STATES, -1, "-1 slots are out of range"),
    ],
)
def test_slots_that_do_not_fit_the_layers_are_refused(states: list[tuple[int, int]], slots: int, named: str):
    with pytest.raises(UsageError, match=named):
        native.KvCache(LAYERS, 4, states=states, slots=slots)


@pytest.fixture(scope="module")
def plan() -> native.Plan:
    weights = native.Matrix.pack(
        np.ones((32, 32), np.float32).view(np.uint8).reshape(-1), "F32", 32, 32, POOL
    )
    made = native.Plan(POOL, cache(), 16)
    made.logits(made.embed(weights), weights, np.ones(32, np.float32), 1e-5)
    made.finish()
    return made


def run(plan: native.Plan, pieces: list[tuple[int, ...]] | None) -> None:
    """Run a step of three rows of one sequence from position 0, and two of another from position 5."""
    array = None if pieces is None else np.array(pieces, np.int32).reshape(-1, 5)
    positions = np.array([0, 1, 2, 5, 6], np.int32)
    seqs, rows = np.array([0, 0, 0, 1, 1], np.int32), np.zeros(5, np.int32)
    plan.run(rows, positions, seqs, np.zeros((2, 1), np.int32), np.array([4], np.int32), pieces=array)


def test_pieces_that_cover_every_row_are_taken(plan: native.Plan):
    run(plan, [(0, 0, 2, -1, 0), (0, 2, 3, 0, 0), (1, 5, 7, 1, 2)])


@pytest.mark.parametrize(
    ("pieces", "named"),
    [
        (None, "pieces of sequence 0 end at position 0, its rows at 3"),
        ([(0, 0, 3, -1, 0)], "pieces of sequence 1 end at position 5, its rows at 7"),
        ([(0, 0, 2, -1, 0), (1, 5, 7, 1, 2)], "end at position 2, its rows at 3"),
        ([(0, 0, 4, -1, 0), (1, 5, 7, 1, 2)], "end at position 4, its rows at 3"),
        ([(0, 1, 3, -1, 0), (1, 5, 7, 1, 2)], "has positions 1 to 3; expected 0"),
        ([(0, 0, 0, -1, 0), (0, 0, 3, 0, 0), (1, 5, 7, 1, 2)], "has positions 0 to 0"),
        ([(0, 0, 3, 0, 0), (1, 5, 7, 1, 2)], "reads slot 0; expected -1"),
        ([(0, 0, 3, -1, 0), (1, 5, 7, -1, 2)], "reads slot -1, which the cache does not have"),
        ([(0, 0, 3, -1, 0), (1, 5, 7, 3, 2)], "reads slot 3, which the cache does not have"),
        ([(0, 0, 3, -1, 3), (1, 5, 7, 1, 2)], "writes slot 3, which the cache does not have"),
        ([(0, 0, 3, -1, -1), (1, 5, 7, 1, 2)], "writes slot -1"),
        ([(0, 0, 2, -1, 0), (0, 2, 3, 1, 0), (1, 5, 7, 1, 2)], "reads slot 1; expected 0"),
        ([(0, 0, 3, -1, 2), (1, 5, 7, 1, 2)], "two sequences write slot 2"),
        ([(0, 0, 3, -1, 1), (1, 5, 7, 1, 2)], "one sequence writes slot 1, which another reads"),
        ([(1, 5, 7, 1, 2), (0, 0, 3, -1, 0)], "pieces of sequence 0 end at position 0"),
        (
            [(0, 0, 3, -1, 0), (1, 5, 7, 1, 2), (2, 0, 1, -1, 0)],
            "piece 2 is of sequence 2, which is not next",
        ),
    ],
)
def test_pieces_that_do_not_fit_the_rows_are_refused(
    plan: native.Plan, pieces: list[tuple[int, ...]] | None, named: str
):
    with pytest.raises(UsageError, match=named):
        run(plan, pieces)


@pytest.mark.parametrize("none", [native.KvCache(LAYERS, 4, "f32"), None], ids=["no slots", "no cache"])
def test_pieces_without_slots_are_refused(none: native.KvCache | None):
    weights = native.Matrix.pack(
        np.ones((32, 32), np.float32).view(np.uint8).reshape(-1), "F32", 32, 32, POOL
    )
    made = native.Plan(POOL, none, 16)
    made.logits(made.embed(weights), weights, np.ones(32, np.float32), 1e-5)
    made.finish()
    if none is not None:  # without a cache a sequence begins at position 0
        run(made, None)
    with pytest.raises(UsageError, match="there is no cache with slots"):
        run(made, [(0, 0, 3, -1, 0), (1, 5, 7, 1, 2)])
