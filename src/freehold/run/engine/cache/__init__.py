"""What layers keep of the tokens before a step: the contract of a kind of cache, and full attention's kind.

Full attention's places are its blocks; window.py and recurrent.py have a kind each. Cached blocks are found by prefix
and kept on disk.

Every sequence has one block table, with BLOCK_TOKENS positions a block. A kind manages the layers that store the same
sort of data: where the data of a block or a sequence lies (a place: an index into the kind's own memory), how long a
prefix can be reused, and what must happen before and after a step. The manager calls all kinds alike and never checks
their class. A model has at most one kind that is not paged, because a prefix hit needs one position that suits all.
Knows blocks and sequences; knows no tree, no disk and no bytes.
"""

# ruff: noqa: B027  (an empty method is a default: the kind has nothing to do there)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from freehold.run.engine.sequence import Sequence

I32 = NDArray[np.int32]
Copies = list[tuple[int, int]]  # from place to place, in order


class CacheKind(ABC):
    """Layers that store the same sort of data. The default methods do nothing."""

    count: int  # places in its memory
    name: ClassVar[str]  # of its table and its copies, for the runner
    paged: ClassVar[bool] = True  # it keeps something of every block; else a state after some of them
    follows: ClassVar[bool] = True  # it takes part in every step; else the methods marked * are not called

    @property
    def live(self) -> int:
        """Places of a kind that is not paged that sequences use."""
        return 0

    @property
    def cached(self) -> int:
        """Its places that no sequence uses and a later one may begin with."""
        return 0

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
        """Return the length of the longest reusable prefix, at most `tokens`, whose blocks are `blocks`.

        `parent`: the running sequence that owns the blocks; its own state can be shared too.
        """
        return tokens

    def begin(self, seq: Sequence, blocks: Ordered[int], parent: Sequence | None = None) -> None:
        """* Start `seq` after its computed tokens, a prefix that `usable` returned."""

    def follow(self, seq: Sequence) -> None:
        """* Update after the block table or the computed tokens of `seq` changed between steps."""

    def shrink(self, seq: Sequence, blocks: int) -> None:
        """* Prepare for `seq` to drop all blocks after its first `blocks`."""

    # --- blocks ------------------------------------------------------------------------------------

    @abstractmethod
    def place(self, block: int) -> int:
        """Return the place of a block's data, or -1 if the kind stores none for it."""

    def provide(self, block: int) -> int:
        """Return a place into which a block's content can be restored."""
        return self.place(block)

    def touch(self, block: int) -> int:
        """Return the block's place and mark it most recently used."""
        return self.place(block)

    def copy(self, place: int, block: int) -> None:
        """Copy into a block the content of a place that `touch` returned and that is unchanged since."""

    def replace(self, seq: Sequence, i: int, old: int) -> None:
        """* Update after block `old`, number `i` in the table, was replaced by one with the same content."""

    def enter(self, seq: Sequence, block: int, tokens: int, last: bool = False) -> None:
        """* Update after a block ending at token `tokens` of `seq` entered the tree; `last`: `seq` ends with it."""

    def leave(self, block: int) -> None:
        """* Update after a block left the tree: its content may change, or no sequence refers to it."""

    def free(self, block: int) -> None:
        """* Take back what is kept of a block that became free."""

    # --- steps -------------------------------------------------------------------------------------

    def stretch(self, seq: Sequence) -> bool:
        """* Allocate what a step that verifies draft tokens needs; False if there is too little memory."""
        return True

    def prepare(self, seq: Sequence, first: int, count: int, drafts: int) -> None:
        """* Allocate places for what a step writes: `count` positions from `first` on, then `drafts` draft tokens."""

    def commit(self, seq: Sequence, tokens: int) -> int:
        """* Roll back rejected drafts; return how many computed tokens remain valid, at most `tokens`.

        -1: the step overwrote the earlier state, so the sequence restarts from what its blocks still hold.
        """
        return tokens

    def take_copies(self) -> Copies:
        """Return the copies due before the next step writes anything."""
        return []

    @abstractmethod
    def table(self, seqs: Ordered[Sequence], block_tables: I32) -> I32:
        """Return where a step of these sequences finds the kind's places; int32, its form is the kind's own."""


# --- full attention --------------------------------------------------------------------------------


class FullAttention(CacheKind):
    """Pages with the number of their block: keys and values of all positions, or latent attention's compressed rows.

    Any prefix is good, and nothing is reserved.
    """

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
