"""The pool of cache blocks: who holds which, and what a finished sequence leaves behind.

Knows blocks and token ids; knows no pages and no arithmetic. A sequence owns its blocks alone. The last
finished one leaves its blocks with the tokens they stand for: a prompt that begins with the same tokens
takes them over, which equals computing them again bit for bit, since a position's keys depend on the tokens
up to it alone.
Path: Scheduler.schedule -> BlockManager.grow; Engine -> BlockManager.retire
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from freehold._native import BLOCK_TOKENS
from freehold.engine.sequence import Sequence


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold `tokens` positions."""
    return -(-tokens // BLOCK_TOKENS)


class BlockManager:
    """Hands out `count` blocks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._kept_tokens: list[int] = []
        self._kept_table: list[int] = []

    @property
    def available(self) -> int:
        """Blocks no live sequence holds."""
        return len(self._free) + len(self._kept_table)

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give `seq` blocks for its first `tokens` positions; False, and none given, if too few are left."""
        need = blocks_for(tokens) - len(seq.table)
        if need > self.available:
            return False
        if need > len(self._free):
            self.forget()
        seq.table += [self._free.pop() for _ in range(need)]
        return True

    def stretch(self, seq: Sequence, tokens: int) -> int:
        """Give `seq` free blocks for up to `tokens` positions; return how many of them have room now."""
        while len(seq.table) < blocks_for(tokens) and self._free:
            seq.table.append(self._free.pop())
        return min(tokens, len(seq.table) * BLOCK_TOKENS)

    def adopt(self, seq: Sequence) -> None:
        """Let a new sequence take over the kept blocks as far as its tokens agree, its last one excepted.

        The last token is computed anew, as its logits are wanted.
        """
        same = min(common_prefix(self._kept_tokens, seq.tokens), len(seq.tokens) - 1)
        if same <= 0:
            return
        keep = blocks_for(same)
        seq.table, self._free = self._kept_table[:keep], self._free + self._kept_table[keep:]
        seq.computed = same
        if not seq.generated:
            seq.cached = same
        self._kept_tokens, self._kept_table = [], []

    def release(self, seq: Sequence) -> None:
        """Take all blocks back; the sequence must be computed from its start."""
        self._free += seq.table
        seq.table, seq.computed = [], 0

    def retire(self, seq: Sequence) -> None:
        """Take the blocks of a sequence that ended; keep what is in them for the next that begins alike."""
        if seq.computed and seq.table:
            self.forget()
            held = blocks_for(seq.computed)
            self._kept_tokens, self._kept_table = seq.tokens[: seq.computed], seq.table[:held]
            self._free += seq.table[held:]
            seq.table = []
        self.release(seq)

    def forget(self) -> None:
        """Free the kept blocks."""
        self._free += self._kept_table
        self._kept_tokens, self._kept_table = [], []


def common_prefix(a: Ordered[int], b: Ordered[int]) -> int:
    """Return how many leading items two lists share."""
    same = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        same += 1
    return same
