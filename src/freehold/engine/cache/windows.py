"""Room for what window layers must still hold: which block has a slot, and which slots may be taken from their block.

Knows blocks and windows; knows no tokens and no pages. A layer with a window looks at the last window - 1 positions, so
a block needs a slot for such layers' pages only while a sequence may look at it. A block that nobody looks at keeps its
slot until another needs one, the longest idle first: until then a prompt can still be taken over there.
Every sequence reserves the most it can need at a time before it begins, so a slot is always to be had.
Path: BlockManager.adopt, grow, publish, release -> Slots.look, unlook; BlockManager.ready -> Slots.fill; ModelRunner ->
Slots.table
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Ordered

import numpy as np
from numpy.typing import NDArray

from freehold._native import BLOCK_TOKENS


class Slots:
    """`count` slots for `blocks` blocks of layers that see `window` positions, in steps of so many tokens at most."""

    def __init__(self, count: int, blocks: int, window: int, max_num_batched_tokens: int) -> None:
        self.count = count
        self.most = quota(window, max_num_batched_tokens)
        self._window = window
        self._slot = np.full(blocks, -1, np.int32)
        self._lookers = [0] * blocks  # sequences that may look at a block
        self._free = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = (
            OrderedDict()
        )  # blocks with a slot and no looker, the longest first
        self._reserved = 0

    # --- what a sequence may need ------------------------------------------------------------------

    def missing(self, blocks: int) -> int:
        """Return how many slots `reserve` lacks for a sequence of up to so many blocks."""
        return max(self._reserved + self._need(blocks) - self.count, 0)

    def reserve(self, blocks: int) -> int:
        """Set slots aside for a sequence of up to so many blocks; return how many, 0 if there are too few."""
        need = 0 if self.missing(blocks) else self._need(blocks)
        self._reserved += need
        return need

    def _need(self, blocks: int) -> int:
        return min(blocks + 1, self.most)  # one more for the copy of a block that is shared

    def unreserve(self, slots: int) -> None:
        """Give back what `reserve` set aside."""
        self._reserved -= slots

    def first(self, computed: int) -> int:
        """Return the number of the first block that the next position looks at."""
        return max(computed - self._window + 1, 0) // BLOCK_TOKENS

    def good(self, blocks: Ordered[int], computed: int) -> int:
        """Return how many of `computed` tokens in `blocks` may be taken over: all, or up to a block's end before."""
        has = self._slot
        if all(has[b] >= 0 for b in blocks[self.first(computed) : -(-computed // BLOCK_TOKENS)]):
            return computed
        best = row = 0  # blocks in a row that have a slot
        for i, block in enumerate(blocks[: computed // BLOCK_TOKENS], 1):
            row = row + 1 if has[block] >= 0 else 0
            if row >= i - self.first(i * BLOCK_TOKENS):
                best = i
        return best * BLOCK_TOKENS

    # --- lookers -----------------------------------------------------------------------------------

    def look(self, block: int) -> None:
        """Count a sequence in that may look at a block."""
        self._lookers[block] += 1
        self._idle.pop(block, None)

    def unlook(self, block: int) -> None:
        """Count one out."""
        self._lookers[block] -= 1
        if not self._lookers[block] and self._slot[block] >= 0:
            self._idle[block] = None

    # --- slots -------------------------------------------------------------------------------------

    def fill(self, blocks: Iterable[int]) -> None:
        """See to it that blocks, which somebody looks at, have slots."""
        for block in blocks:
            if self._slot[block] < 0:
                self._slot[block] = self._taken()

    def _taken(self) -> int:
        if not self._free:
            block = next(iter(self._idle))
            self.forget(block)
        return self._free.pop()

    def forget(self, block: int) -> None:
        """Take a block's slot; it holds nothing that anybody will look at."""
        if self._slot[block] >= 0:
            self._free.append(int(self._slot[block]))
            self._slot[block] = -1
            self._idle.pop(block, None)

    def hand(self, block: int, twin: int) -> None:
        """Let the block's twin have its slot, unless it has one of its own: both hold the same."""
        if self._slot[twin] < 0 <= self._slot[block]:
            self._slot[twin], self._slot[block] = self._slot[block], -1
            self._idle.pop(block, None)
            if not self._lookers[twin]:
                self._idle[twin] = None

    def touch(self, block: int) -> None:
        """Let an idle block be the last to lose its slot."""
        if block in self._idle:
            self._idle.move_to_end(block)

    def of(self, block: int) -> int:
        """Return a block's slot, -1 for none."""
        return int(self._slot[block])

    def table(self, blocks: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the slots of blocks, in their places."""
        return self._slot[blocks]


def quota(window: int, max_num_batched_tokens: int) -> int:
    """Return the slots a sequence needs at most: its window, a step's rows, parts of blocks at both ends, a copy."""
    return -(-(window + max_num_batched_tokens) // BLOCK_TOKENS) + 2
