"""Full attention: keys and values of all positions, in the block itself.

Knows blocks; knows no sequence and no bytes. Any prefix is good, nothing is reserved, and a block's place is its own
number. Layers of latent attention keep a compressed row a position in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from freehold.run.engine.cache.contract import I32, CacheKind, Copies
from freehold.run.engine.sequence import Sequence


class FullAttention(CacheKind):
    """Pages with the number of their block."""

    name, follows = "full", False

    def __init__(self, count: int) -> None:
        self.count = count
        self._copies: Copies = []

    def place(self, block: int) -> int:
        """Return the block's own number."""
        return block

    def copy(self, place: int, block: int) -> None:
        """Copy a block on write, unless it was taken over itself."""
        if place != block:
            self._copies.append((place, block))

    def take_copies(self) -> Copies:
        """Return the copies due from block to block."""
        copies, self._copies = self._copies, []
        return copies

    def table(self, seqs: Ordered[Sequence], block_tables: I32) -> I32:
        """Return the block tables: int32 [sequences, width]."""
        return block_tables
