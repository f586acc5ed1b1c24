"""What a kind of cache does for sequences; full.py, window.py and recurrent.py each hold one.

A sequence has one table of blocks of BLOCK_TOKENS positions, whatever its model's layers keep. A kind answers for
layers that keep alike: where what they keep of a block or of a sequence lies (a number in the kind's own memory), how
long a prefix they can go on behind, and what they need before and after a step. The manager goes over its kinds and
asks none what it is. A model has at most one kind that is not paged, since a hit needs one position that suits all.
Knows blocks and sequences; knows no tree, no disk and no bytes.
Path: Scheduler, Engine -> BlockManager -> CacheKind; ModelRunner -> CacheKind.table
"""

# ruff: noqa: B027  (an empty method is a default: the kind has nothing to do there)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from freehold.engine.sequence import Sequence

I32 = NDArray[np.int32]
Copies = list[tuple[int, int]]  # from place to place, in order


class CacheKind(ABC):
    """Layers that keep alike. What is not overridden needs nothing done."""

    count: int  # places in its memory
    name: ClassVar[str]  # of its table and its copies, for the runner
    paged: ClassVar[bool] = True  # it keeps something of every block; else a state after some of them
    follows: ClassVar[bool] = True  # it takes part in every step; else the methods marked * are not called

    # --- admission ---------------------------------------------------------------------------------

    def reserve(self, seq: Sequence, blocks: int) -> bool:
        """* Set aside the most that a sequence of up to `blocks` blocks needs at a time; False: too little is left."""
        return True

    def reservable(self, seq: Sequence, blocks: int, released: Iterable[Sequence]) -> bool:
        """* Tell whether `reserve` would succeed once other sequences were released."""
        return True

    def release(self, seq: Sequence) -> None:
        """* Take back all that a sequence holds, before its blocks are dropped."""

    # --- hits --------------------------------------------------------------------------------------

    def usable(self, blocks: Ordered[int], tokens: int, parent: Sequence | None = None) -> int:
        """Return how many of `tokens` computed tokens in `blocks` a sequence can go on behind: all, or fewer.

        `parent`: the running sequence whose blocks they are; what it holds itself can be shared too.
        """
        return tokens

    def begin(self, seq: Sequence, blocks: Ordered[int], parent: Sequence | None = None) -> None:
        """* Let `seq` go on behind its computed tokens, which `usable` has allowed."""

    def follow(self, seq: Sequence) -> None:
        """* Take note that the table or the computed tokens of `seq` have changed between steps."""

    def shrink(self, seq: Sequence, blocks: int) -> None:
        """* Take note that `seq` is about to drop all blocks behind its first `blocks`."""

    # --- blocks ------------------------------------------------------------------------------------

    @abstractmethod
    def place(self, block: int) -> int:
        """Return where what the kind keeps of a block lies, -1 where it keeps nothing of it."""

    def provide(self, block: int) -> int:
        """Return a place for what a block held before, for its content to be read into."""
        return self.place(block)

    def touch(self, block: int) -> int:
        """Return a block's place, and let it be the last that is taken from its block."""
        return self.place(block)

    def copy(self, place: int, block: int) -> None:
        """Let a block hold what lies at a place that `touch` gave; nothing has been written there since."""

    def replace(self, seq: Sequence, i: int, old: int) -> None:
        """* Take note that another block with the same content has replaced block `old`, number `i` in a table."""

    def enter(self, seq: Sequence, block: int, tokens: int, last: bool = False) -> None:
        """* Take note that the tree knows a block that ends behind `tokens` tokens of `seq`; `last`: as that does."""

    def leave(self, block: int) -> None:
        """* Take note that the tree no longer knows a block: its content may change, or nothing refers to it."""

    def free(self, block: int) -> None:
        """* Take back what is kept of a block that became free."""

    # --- steps -------------------------------------------------------------------------------------

    def stretch(self, seq: Sequence) -> bool:
        """* Provide for a step that verifies draft tokens; False where there is no room for that."""
        return True

    def prepare(self, seq: Sequence, first: int, count: int, drafts: int) -> None:
        """* Provide places for what a step writes: `count` positions from `first` on, and drafts behind them."""

    def commit(self, seq: Sequence, tokens: int) -> int:
        """* Go back behind refused drafts: return the most computed tokens, up to `tokens`, to go on behind.

        -1: the step has overwritten what was there, so the sequence begins again with what its blocks still hold.
        """
        return tokens

    def take_copies(self) -> Copies:
        """Return the copies due before the next step writes anything."""
        return []

    @abstractmethod
    def table(self, seqs: Ordered[Sequence], block_tables: I32) -> I32:
        """Return where a step of these sequences finds the kind's places; int32, its form is the kind's own."""
