"""A model of full, sliding-window and recurrent layers whose every value is known: running sums over its tokens.

What a layer keeps of a position is a sum over all tokens up to it, so a value that was taken over, copied, rewound or
read from disk equals a recompute or is wrong. The runner checks each value that a step of such layers would read.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.run.engine.cache import Copies, FullAttention
from freehold.run.engine.cache.blocks import BlockManager
from freehold.run.engine.cache.disk import DiskCache, Memory
from freehold.run.engine.cache.recurrent import Recurrent
from freehold.run.engine.cache.window import SlidingWindow
from freehold.run.engine.sequence import ScheduledChunk, Sequence
from tests.engine.rig import Stepper

PRIME = 2_147_483_647
FACTORS = (3, 5, 7, 11, 13)  # of a full layer's value, a window layer's, and a state of three
STATE = slice(2, 5)
GARBAGE = -1  # in what nothing refers to

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


def step(values: tuple[int, ...], token: int) -> tuple[int, ...]:
    """Return the sums after one more token."""
    return tuple([(f * v + token + 1) % PRIME for f, v in zip(FACTORS, values, strict=True)])


def sums(tokens: Ordered[int], known: list[tuple[int, ...]] | None = None) -> I64:
    """Return all sums before and after each of some tokens: int64 [tokens + 1, 5]; `known`: of the first ones."""
    rows = known if known is not None else [(0,) * len(FACTORS)]
    for token in tokens[len(rows) - 1 :]:
        rows.append(step(rows[-1], token))
    return np.array(rows[: len(tokens) + 1], np.int64)


class Pages(Memory):
    """A value a position, for a full layer in blocks and for a window layer in window blocks."""

    def __init__(self, blocks: int, window_blocks: int) -> None:
        self.full = np.full((blocks, SIZE), GARBAGE, np.int64)
        self.window = np.full((window_blocks, SIZE), GARBAGE, np.int64)

    @property
    def nbytes(self) -> int:
        return 2 * SIZE * 8

    def read(self, places: Ordered[int]) -> U8:
        return np.concatenate([self.full[places[0]], self.window[places[1]]]).view(np.uint8)

    def write(self, places: Ordered[int], content: U8) -> None:
        self.full[places[0]], self.window[places[1]] = content.view(np.int64).reshape(2, SIZE)

    def copy(self, copies: Mapping[str, Copies]) -> None:
        for values, pairs in ((self.full, copies["full"]), (self.window, copies.get("window", []))):
            for source, target in pairs:
                values[target] = values[source]


class States(Memory):
    """A state of three values in each slot."""

    def __init__(self, count: int) -> None:
        self.values = np.full((count, 3), GARBAGE, np.int64)

    @property
    def nbytes(self) -> int:
        return 3 * 8

    def read(self, places: Ordered[int]) -> U8:
        return self.values[places[0]].copy().view(np.uint8)

    def write(self, places: Ordered[int], content: U8) -> None:
        self.values[places[0]] = content.view(np.int64)

    def copy(self, copies: Mapping[str, Copies]) -> None:
        raise AssertionError("states are never copied")


class ScriptedRunner:
    """Computes steps as ModelRunner does; an AssertionError where a value that is read differs from a recompute."""

    def __init__(self, blocks: BlockManager, window: int) -> None:
        places = blocks.places
        self.pages = Pages(places["full"], places.get("window", 0))
        self.states = States(places["recurrent"])
        self._blocks = blocks
        self._window = window
        self._known: dict[Sequence, list[tuple[int, ...]]] = {}

    def run(self, batch: list[ScheduledChunk], choose: bool = True) -> list[I64]:
        """Compute a step; return the sums behind each row whose logits are wanted."""
        assert not choose
        self.pages.copy(self._blocks.take_copies())
        tables = self._blocks.tables([chunk.seq for chunk in batch], _tables(batch))
        expected = [self._expected(chunk) for chunk in batch]
        self._run_states(batch, tables["recurrent"], expected)
        for i, chunk in enumerate(batch):
            at = np.arange(chunk.first, chunk.first + chunk.num_tokens)
            self.pages.full[tables["full"][i, at // SIZE], at % SIZE] = expected[i][at + 1, 0]
            if "window" in tables:
                self.pages.window[tables["window"][i, at // SIZE], at % SIZE] = expected[i][at + 1, 1]
        for i, chunk in enumerate(batch):
            at = np.arange(chunk.first + chunk.num_tokens)
            found = self.pages.full[tables["full"][i, at // SIZE], at % SIZE]
            assert np.array_equal(found, expected[i][at + 1, 0])
            if "window" in tables:
                at = at[max(chunk.first - self._window + 1, 0) :]
                places = tables["window"][i, at // SIZE]
                assert (places >= 0).all()
                assert np.array_equal(self.pages.window[places, at % SIZE], expected[i][at + 1, 1])
        return [expected[i][[chunk.first + r + 1 for r in chunk.logit_rows]] for i, chunk in enumerate(batch)]

    def _expected(self, chunk: ScheduledChunk) -> I64:
        known = self._known.setdefault(chunk.seq, [(0,) * len(FACTORS)])
        sums(chunk.seq.tokens[: chunk.first + chunk.count], known)
        return sums([*chunk.seq.tokens[: chunk.first + chunk.count], *chunk.draft], [*known])

    def _run_states(
        self, batch: list[ScheduledChunk], pieces: NDArray[np.int32], expected: list[I64]
    ) -> None:
        done = [chunk.first for chunk in batch]
        first_read: dict[int, int] = {}
        written: dict[int, int] = {}
        for i, first, end, read, write in pieces.tolist():
            assert first == done[i] < end
            if first == batch[i].first:
                first_read[i] = read
            state = (0, 0, 0) if read < 0 else tuple(self.states.values[read].tolist())
            for token in [*batch[i].seq.tokens[: batch[i].first + batch[i].count], *batch[i].draft][
                first:end
            ]:
                state = step((0, 0, *state), token)[STATE]
            assert state == tuple(expected[i][end, STATE].tolist())
            self.states.values[write] = state
            assert written.setdefault(write, i) == i
            done[i] = end
        assert done == [chunk.first + chunk.num_tokens for chunk in batch]
        for i, slot in first_read.items():  # sequences of a step run side by side
            assert written.get(slot, i) == i

    def forget(self) -> None:
        """Overwrite what nothing refers to, so that a value read from there is wrong."""
        due = any(
            kind._copies for kind in self._blocks.kinds if isinstance(kind, FullAttention | SlidingWindow)
        )
        for kind in self._blocks.kinds:
            if isinstance(kind, Recurrent):
                self.states.values[kind._free] = GARBAGE
            elif isinstance(kind, SlidingWindow) and not due:
                self.pages.window[kind._free] = GARBAGE
        if not due:
            self.pages.full[self._blocks.pool._free] = GARBAGE


def _tables(batch: list[ScheduledChunk]) -> NDArray[np.int32]:
    tables = np.zeros((len(batch), max(len(w.seq.block_table) for w in batch)), np.int32)
    for row, chunk in zip(tables, batch, strict=True):
        row[: len(chunk.seq.block_table)] = chunk.seq.block_table
    return tables


class ScriptedRig(Stepper[ScriptedRunner]):
    """A pool of the three kinds, stepped by hand."""

    def __init__(
        self,
        count: int,
        window: int,
        window_blocks: int,
        states: int,
        rows: int,
        disk: Path | None = None,
        every: int = 2 * SIZE,
    ) -> None:
        kinds = [SlidingWindow(window_blocks, count, window, rows), Recurrent(states, every)]
        self.blocks = BlockManager(count, kinds)
        self.runner = ScriptedRunner(self.blocks, window)
        self.disk = None
        if disk is not None:
            pages, states_ = self.runner.pages, self.runner.states
            self.disk = DiskCache(disk, {"model": "scripted"}, pages.nbytes, states_.nbytes)
            self.blocks.attach(self.disk, pages, [states_])
