"""Sliding-window layers: a smaller pool of window blocks that covers only the current windows.

Knows blocks and windows; knows no tokens and no pages. Such a layer sees the last window - 1 positions, so a block
needs a window block for its pages only while a sequence's window reaches it. A block that no window reaches keeps its
own until another block needs one, the longest idle first: until then a prefix that ends there is a hit.
Every sequence reserves its maximum before it begins, so allocation never fails.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import numpy as np

from freehold._native import BLOCK_TOKENS
from freehold.run.engine.cache import I32, CacheKind, Copies
from freehold.run.engine.sequence import Sequence


@dataclass(slots=True)
class _Reach:
    """Window blocks reserved for a sequence, and the part of its block table that its window reaches."""

    reserved: int
    first: int = 0
    end: int = 0


class SlidingWindow(CacheKind):
    """`count` window blocks for `blocks` blocks, where steps have up to `max_num_batched_tokens` tokens."""

    name = "window"

    def __init__(self, count: int, blocks: int, window: int, max_num_batched_tokens: int) -> None:
        self.count = count
        self.most = quota(window, max_num_batched_tokens)
        self._window = window
        self._place = np.full(blocks, -1, np.int32)
        self._reached = [0] * blocks  # sequences whose windows reach a block
        self._free = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # blocks with a place that no window reaches
        self._seqs: dict[Sequence, _Reach] = {}
        self._reserved = 0
        self._copies: Copies = []

    # --- admission ---------------------------------------------------------------------------------

    def _need(self, blocks: int) -> int:
        return min(blocks + 1, self.most)  # one more for the copy of a block that is shared

    def reserve(self, seq: Sequence, blocks: int) -> bool:
        """Set aside window blocks for the window of a sequence and for a step."""
        if seq in self._seqs:
            return True
        need = self._need(blocks)
        if self._reserved + need > self.count:
            return False
        self._reserved += need
        self._seqs[seq] = _Reach(need)
        return True

    def reservable(self, seq: Sequence, blocks: int, released: Iterable[Sequence]) -> bool:
        """Tell whether `reserve` would succeed once other sequences were released."""
        given_back = sum(self._seqs[s].reserved for s in released if s in self._seqs)
        return seq in self._seqs or self._reserved - given_back + self._need(blocks) <= self.count

    def release(self, seq: Sequence) -> None:
        """Take back what a sequence has reserved; its blocks keep their places until others need them."""
        if seq in self._seqs:
            self.shrink(seq, 0)
            self._reserved -= self._seqs.pop(seq).reserved

    # --- hits --------------------------------------------------------------------------------------

    def first(self, computed: int) -> int:
        """Return the number of the first block that the next position sees."""
        return max(computed - self._window + 1, 0) // BLOCK_TOKENS

    def usable(self, blocks: Ordered[int], tokens: int, parent: Sequence | None = None) -> int:
        """Return `tokens` where the window before them is there, else up to an earlier block's end."""
        place = self._place
        if all(place[b] >= 0 for b in blocks[self.first(tokens) : -(-tokens // BLOCK_TOKENS)]):
            return tokens
        best = run = 0  # blocks in a row that have a place
        for i, block in enumerate(blocks[: tokens // BLOCK_TOKENS], 1):
            run = run + 1 if place[block] >= 0 else 0
            if run >= i - self.first(i * BLOCK_TOKENS):
                best = i
        return best * BLOCK_TOKENS

    # --- what windows reach ------------------------------------------------------------------------

    def follow(self, seq: Sequence) -> None:
        """Move the window to end before the next position."""
        self._slide(seq, seq.num_computed_tokens)

    def commit(self, seq: Sequence, tokens: int) -> int:
        """Move the window to end at `tokens`; blocks wholly before it become idle."""
        reach = self._seqs[seq]
        if self.first(tokens) != reach.first or len(seq.block_table) != reach.end:
            self._slide(seq, tokens)
        return tokens

    def _slide(self, seq: Sequence, tokens: int) -> None:
        reach, table = self._seqs[seq], seq.block_table
        first, end = self.first(tokens), len(table)
        for block in (*table[first : min(reach.first, end)], *table[max(first, reach.end) : end]):
            self._reach(block)
        for block in table[reach.first : min(first, reach.end)]:
            self._unreach(block)
        reach.first, reach.end = first, end

    def shrink(self, seq: Sequence, blocks: int) -> None:
        """Let no window reach the blocks that a sequence is about to drop."""
        reach = self._seqs[seq]
        for block in reversed(seq.block_table[max(reach.first, blocks) : reach.end]):
            self._unreach(block)
        reach.first, reach.end = min(reach.first, blocks), min(reach.end, blocks)

    def replace(self, seq: Sequence, i: int, old: int) -> None:
        """Reach the new block in place of the old one, whose window block it gets unless it has one."""
        reach, block = self._seqs[seq], seq.block_table[i]
        if reach.first <= i < reach.end:
            self._reach(block)
            self._unreach(old)
        if self._place[block] < 0 <= self._place[old]:
            self._place[block], self._place[old] = self._place[old], -1
            self._idle.pop(old, None)
            if not self._reached[block]:
                self._idle[block] = None

    def _reach(self, block: int) -> None:
        self._reached[block] += 1
        self._idle.pop(block, None)

    def _unreach(self, block: int) -> None:
        self._reached[block] -= 1
        if not self._reached[block] and self._place[block] >= 0:
            self._idle[block] = None

    # --- window blocks -----------------------------------------------------------------------------

    def prepare(self, seq: Sequence, first: int, count: int, drafts: int) -> None:
        """Give window blocks to the blocks that a step writes, all of which the window reaches."""
        end = -(-(first + count + drafts) // BLOCK_TOKENS)
        for block in seq.block_table[first // BLOCK_TOKENS : end]:
            if self._place[block] < 0:
                self.provide(block)

    def place(self, block: int) -> int:
        """Return the window block of a block, -1 for none."""
        return int(self._place[block])

    def provide(self, block: int) -> int:
        """Give a block a window block unless it has one; the longest idle block loses its own for it."""
        if self._place[block] < 0:
            if not self._free:
                self.free(next(iter(self._idle)))
            self._place[block] = self._free.pop()
        return int(self._place[block])

    def touch(self, block: int) -> int:
        """Return a block's window block; it is the last to be taken away."""
        if block in self._idle:
            self._idle.move_to_end(block)
        return int(self._place[block])

    def copy(self, place: int, block: int) -> None:
        """Copy on write; the block may get that very place, if it was the last to be had."""
        if place >= 0 and self.provide(block) != place:
            self._copies.append((place, int(self._place[block])))

    def free(self, block: int) -> None:
        """Take a block's window block away."""
        if self._place[block] >= 0:
            self._free.append(int(self._place[block]))
            self._place[block] = -1
            self._idle.pop(block, None)

    def take_copies(self) -> Copies:
        """Return the copies due from window block to window block."""
        copies, self._copies = self._copies, []
        return copies

    def table(self, seqs: Ordered[Sequence], block_tables: I32) -> I32:
        """Return the window blocks of a step's blocks, in their places: int32 [sequences, width]."""
        return self._place[block_tables]


def quota(window: int, max_num_batched_tokens: int) -> int:
    """Return the most window blocks a sequence needs: its window, a step, parts of blocks at both ends, a copy."""
    return -(-(window + max_num_batched_tokens) // BLOCK_TOKENS) + 2
