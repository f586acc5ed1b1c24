"""Compares models on the same cases: shares with bounds, paired differences, and what few cases can decide.

Pairs decide more than shares: a case that both models pass, or neither, tells nothing of which is better. Knows
zeros and ones; knows no model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from freehold.choose.advisor.interval import LEVEL, Interval, wilson

_RESAMPLES = 2000
_Z = 1.2816  # standard deviations that hold 80 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Compared:
    """One model beside another on the same cases: cases that only the one passed, only the other, and the rest.

    `difference`: of the shares passed, resampled by cases, as (low, mid, high) with 80 % between. `p`: the chance of a
    split at least so uneven between equals (McNemar's exact test).
    """

    wins: int
    losses: int
    ties: int
    difference: tuple[float, float, float]
    p: float


def share(marks: Sequence[bool]) -> Interval:
    """Return the share passed in per cent with 80 % bounds (Wilson 1927), which hold for a few cases too."""
    return wilson(marks, LEVEL).times(100)


def resampled_mean(scores: Sequence[float], level: float) -> Interval:
    """Return the mean of graded scores with bounds from cases drawn with replacement; equal scores, equal bounds."""
    return Interval(*resampled(scores, level), level)


def resampled(values: Sequence[float], level: float, times: int = _RESAMPLES) -> tuple[float, float, float]:
    """Return the mean of values between its bounds, cases drawn with replacement; the same values, the same bounds."""
    draw, n = random.Random(0), len(values)
    means = sorted(sum(draw.choices(values, k=n)) / n for _ in range(times))
    edge, mean = round((1 - level) / 2 * times), sum(values) / n
    return min(means[edge], mean), mean, max(means[-edge - 1], mean)


def compared(one: Sequence[bool], other: Sequence[bool]) -> Compared:
    """Compare two models' marks of the same cases, in the same order."""
    if len(one) != len(other) or not one:
        raise ValueError(f"{len(one)} and {len(other)} marks are no pairs")
    steps = [int(a) - int(b) for a, b in zip(one, other, strict=True)]
    wins, losses = steps.count(1), steps.count(-1)
    low, mid, high = (100 * bound for bound in resampled(steps, LEVEL))
    return Compared(wins, losses, len(steps) - wins - losses, (low, mid, high), mcnemar(wins, losses))


def resolution(cases: int) -> float:
    """Return the difference in per cent that this many cases can tell from none, if half of them differ between models.

    The half-width of an 80 % interval: 1.28 x sqrt(0.5 / n).
    """
    return 100 * _Z * math.sqrt(0.5 / cases)


def mcnemar(wins: int, losses: int) -> float:
    """Return the chance of a split at least so uneven between equals: McNemar's exact test, two-sided."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(2 * tail, 1.0)
