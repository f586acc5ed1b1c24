"""Detects an answer that repeats itself endlessly, as small models do.

Knows only text. An endless loop is text that a compressor reduces to almost nothing: of its last characters, at most
one in 22 remains. Prose keeps one in 2 or 3, a table of numbers one in 4, JSON of equal records one in 10.
Path: run or chat.Chat -> LoopGuard.add for each piece -> True ends the answer
"""

from __future__ import annotations

import zlib

# Characters checked. The first finds a phrase of a few words, the last a passage of some 400 characters, each after
# about twenty rounds of it.
WINDOWS = (1_200, 2_400, 4_800, 9_600)
REMAINS = 1 / 22
EVERY = 200  # characters between two checks: a check of 9,600 takes some 50 us

ADVICE = "--no-loop-guard turns this off; --repetition-penalty 1.1 or another model often helps"


class LoopGuard:
    """Checks one answer: `add` returns True once the answer is a loop."""

    def __init__(self) -> None:
        self._tail = ""
        self._unseen = 0

    def add(self, text: str) -> bool:
        """Add the next piece of the answer."""
        self._tail = (self._tail + text)[-WINDOWS[-1] :]
        self._unseen += len(text)
        if self._unseen < EVERY:
            return False
        self._unseen = 0
        return any(repeats(self._tail[-size:]) for size in WINDOWS if len(self._tail) >= size)


def repeats(text: str) -> bool:
    """Return whether a text is one short passage repeated."""
    raw = text.encode("utf-8", "replace")
    return len(zlib.compress(raw, 6)) < REMAINS * len(raw)
