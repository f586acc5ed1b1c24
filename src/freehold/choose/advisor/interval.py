"""An uncertain figure: its middle, and bounds that should contain the true value.

`level` is how often it does: at 0.8, four of five outcomes fall between `low` and `high`. Knows no unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Self

LEVEL = 0.8
_WIDTH = 1.2816  # standard deviations that hold 80 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Interval:
    """0 <= low <= mid <= high; infinite where nothing bounds it."""

    low: float
    mid: float
    high: float
    level: float = LEVEL

    def __post_init__(self) -> None:
        """Refuse bounds out of order: that is a mistake of ours."""
        if not 0 <= self.low <= self.mid <= self.high or not 0 < self.level < 1:
            raise ValueError(f"no interval: {self.low}, {self.mid}, {self.high} at {self.level}")

    @classmethod
    def exactly(cls, value: float) -> Self:
        """Return a figure without doubt."""
        return cls(value, value, value)

    @classmethod
    def within(cls, mid: float, factor: float) -> Self:
        """Return `mid` with bounds a factor (1.0 or more) below and above it."""
        return cls(mid / factor, mid, mid * factor)

    @classmethod
    def lognormal(cls, mid: float, deviation: float) -> Self:
        """Return `mid` with 80 % bounds, where the logarithm's standard deviation is `deviation`."""
        return cls.within(mid, math.exp(_WIDTH * deviation))

    def times(self, factor: float) -> Interval:
        """Return it in another unit, or for `factor` times as much."""
        return Interval(self.low * factor, self.mid * factor, self.high * factor, self.level)

    def plus(self, other: Interval) -> Interval:
        """Return the sum; bounds add up, as if both were wrong in the same direction."""
        return Interval(
            self.low + other.low, self.mid + other.mid, self.high + other.high, min(self.level, other.level)
        )

    def inverse(self) -> Interval:
        """Return one over it: seconds a token from tokens a second."""
        low, mid, high = (1 / x if x else math.inf for x in (self.high, self.mid, self.low))
        return Interval(low, mid, high, self.level)

    def __contains__(self, value: float) -> bool:
        """Say whether `value` lies between the bounds."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        """Write it for people: "52 (44 to 61)", three digits at most after the rounding."""
        mid, low, high = (digits(x) for x in (self.mid, self.low, self.high))
        return mid if low == high else f"{mid} ({low} to {high})"

    def as_json(self) -> dict[str, float | None]:
        """Return it as JSON knows it: low, mid, high, level; None where there is no bound."""
        return {k: float(f"{v:.4g}") if math.isfinite(v) else None for k, v in asdict(self).items()}


def wilson(scores: Sequence[float], level: float) -> Interval:
    """Return the mean of scores from 0 to 1 with bounds (Wilson 1927), which hold for a few cases too.

    For graded scores the bounds are too wide rather than too narrow: their variance is at most that of zeros and ones.
    """
    n = len(scores)
    if not n:
        raise ValueError("no cases")
    z = NormalDist().inv_cdf((1 + level) / 2)
    mean = sum(scores) / n
    middle = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Interval(min(low, mean), mean, max(high, mean), level)


def digits(value: float) -> str:
    """Write a number with three significant digits, or whole: 0.0123, 1.23, 12.3, 123, 1,234."""
    if not math.isfinite(value) or value >= 100:
        return f"{value:,.0f}"
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(places, 0)}f}"
