"""Blocks of prompts that a simulated engine holds: those in use, and idle ones in the order of their last use.

Knows ids and counts; an id stands for a block and everything before it, as in Mooncake's traces. A block counts as
cached once its request is admitted: prompts are read in that order, so it is there when the next one needs it.
Path: SimulatedEngine -> PrefixBlocks.known, take, release, trim
"""

from __future__ import annotations

from collections.abc import Sequence


class PrefixBlocks:
    """A prefix cache. Idle blocks take what memory is left; the longest unused go first, ends before beginnings."""

    def __init__(self, block: int) -> None:
        """`block`: tokens under one id."""
        self.block = block
        self._users: dict[int, int] = {}
        self._idle: dict[int, None] = {}  # oldest first: dicts keep their order

    @property
    def tokens(self) -> int:
        """Tokens of blocks in use."""
        return self.block * len(self._users)

    def known(self, blocks: Sequence[int]) -> int:
        """Return how many of the first `blocks` are cached, in use or idle."""
        users, idle = self._users, self._idle
        for count, block in enumerate(blocks):
            if block not in users and block not in idle:
                return count
        return len(blocks)

    def new_tokens(self, blocks: Sequence[int]) -> int:
        """Return by how much `tokens` grows when these are taken."""
        return self.block * sum(block not in self._users for block in blocks)

    def take(self, blocks: Sequence[int]) -> None:
        """Use blocks; those that were not there are made."""
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using them. What no other uses becomes idle, the end of the prompt before its beginning."""
        for block in reversed(blocks):
            left = self._users[block] - 1
            if left:
                self._users[block] = left
            else:
                del self._users[block]
                self._idle[block] = None

    def trim(self, tokens: int) -> None:
        """Drop idle blocks until they are no more than `tokens`."""
        over = len(self._idle) - max(tokens, 0) // self.block
        for block in list(self._idle)[:over] if over > 0 else ():
            del self._idle[block]
