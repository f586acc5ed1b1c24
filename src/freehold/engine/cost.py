"""What steps cost on this machine, and how many guessed rows are worth it.

Knows seconds by rows; knows no sequence, no guess, no clock. No shape is assumed: on one machine eight rows
cost little more than one, on another sixteen cost less than twelve, since another kernel takes over.
Path: Speculation.learn -> StepCost.add; Speculation.extend -> best_extra
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence

# Rows of a step that are tried: a tile's widths, then steps of about a third; a cost is soon known for each.
LADDER = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_TRIED = frozenset(LADDER)
# Others on the machine only ever slow a step down, so a cost is the lower quartile of so many latest steps: what the
# step takes while it is left alone, which is what rows must be compared by.
SAMPLES = 16
STALE = 500  # steps after which a cost counts as unknown: depth and neighbours change it
ROW_GUESS = 0.06  # cost of one more row over a lone one's, until it was measured
MARGIN = 1.05  # guesses must promise this much more than plain decoding


class StepCost:
    """Seconds of a step by its rows, learnt from the steps themselves."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._cost: dict[int, float] = {}
        self._seen: dict[int, int] = {}  # rows -> step of the latest sample
        self._rows: list[int] = []  # sorted
        self._steps = 0

    def add(self, rows: int, seconds: float) -> None:
        """Take in how long a step took."""
        self._steps += 1
        if rows not in self._samples:
            self._samples[rows] = deque(maxlen=SAMPLES)
            insort(self._rows, rows)
        samples = self._samples[rows]
        samples.append(seconds)
        self._cost[rows] = sorted(samples)[(len(samples) - 1) // 4]
        self._seen[rows] = self._steps
        if self._steps % STALE == 0:
            self._drop_stale()

    def count(self, rows: int) -> int:
        """Return how many recent steps had so many rows."""
        return len(self._samples.get(rows, ()))

    def seconds(self, rows: int) -> float:
        """Return the cost of so many rows; between and beyond what was measured, a hopeful guess."""
        known = self._cost.get(rows)
        if known is not None or not self._rows:
            return known or 0.0
        at = bisect_left(self._rows, rows)
        above = self._rows[at] if at < len(self._rows) else None
        if at == 0:
            return self._cost[self._rows[0]]
        below = self._rows[at - 1]
        if above is not None and 2 * above <= 3 * below + 2:  # neighbours on the ladder, or nearer
            share = (rows - below) / (above - below)
            return self._cost[below] * (1 - share) + self._cost[above] * share
        hope = self._cost[below] + ROW_GUESS * self._cost[self._rows[0]] * (rows - below)
        return hope if above is None else min(hope, self._cost[above])

    def _drop_stale(self) -> None:
        for rows in [r for r in self._rows if self._steps - self._seen[r] >= STALE]:
            del self._samples[rows], self._cost[rows], self._seen[rows]
            self._rows.remove(rows)


def best_extra(gains: Sequence[float], plain: int, cost: Callable[[int], float]) -> int:
    """Return how many guesses, likeliest first, give the most tokens a second beside `plain` lone rows.

    `gains` are the chances that each guess becomes a token, falling. 0 when no number promises to pay.
    """
    best, extra = MARGIN * plain / cost(plain), 0
    expected = float(plain)
    for count, gain in enumerate(gains, 1):
        expected += gain
        if plain + count in _TRIED or count == len(gains):
            rate = expected / cost(plain + count)
            if rate > best:
                best, extra = rate, count
    return extra
