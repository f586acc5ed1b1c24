"""Processor seconds of a quantisation by what they were spent on, over all runs that made it.

Knows names and seconds; knows no tensor.
Path: quantising.quantise -> SpentSeconds.on -> receipt
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from freehold.adapt.receipt import cpu_seconds

PARTS = ("mix", "calibration", "encoding", "report")


class SpentSeconds:
    """Adds up seconds by part. A part inside another one counts alone: calibration runs while tensors are encoded."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._parts: list[str] = []
        self._since = 0.0

    def resume(self, kept: Mapping[str, float]) -> None:
        """Add what earlier runs spent."""
        for part, seconds in kept.items():
            if part in self.seconds:
                self.seconds[part] += float(seconds)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count what is spent inside as `part`."""
        self._count()
        self._parts.append(part)
        try:
            yield
        finally:
            self._count()
            self._parts.pop()

    def so_far(self) -> dict[str, float]:
        """Return seconds by part, rounded, up to now; parts without any are left out."""
        self._count()
        return {part: round(seconds, 2) for part, seconds in self.seconds.items() if seconds >= 0.005}

    def _count(self) -> None:
        now = cpu_seconds()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now
