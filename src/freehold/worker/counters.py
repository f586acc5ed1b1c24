"""A model's statistics over all engines it has had.

Knows EngineStats; knows no engine. Path: EngineHandle._frame -> Counters.update; Counters.total -> /metrics
"""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import zip_longest
from typing import Any

from freehold.serving import EngineStats

_BLOCKS = {"blocks", "blocks_live", "blocks_shared", "blocks_cached"}
_CACHE = {*_BLOCKS, "states", "states_live", "states_cached", "state_bytes"}
_GAUGES = {"running", "waiting", "expected_wait_s", "progress_at", *_CACHE}


class Counters:
    """The latest engine's numbers, and the sums of those before it: no counter may shrink at a restart."""

    def __init__(self) -> None:
        self._latest, self._before = EngineStats(), EngineStats()

    def update(self, stats: EngineStats) -> None:
        """Take the numbers of the present engine."""
        self._latest = stats

    @property
    def total(self) -> EngineStats:
        """The latest gauges, and counters over all engines."""
        names = (f.name for f in fields(EngineStats) if f.name not in _GAUGES)
        sums = {n: _sum(getattr(self._latest, n), getattr(self._before, n)) for n in names}
        return replace(self._latest, **sums)

    def engine_ended(self) -> None:
        """Add the numbers of an engine that is gone; the next one begins at 0."""
        self._before, self._latest = self.total, EngineStats(progress_at=self._latest.progress_at)


def _sum(now: Any, before: Any) -> Any:
    """Add two counters, or two rows of them."""
    if isinstance(now, tuple):
        return tuple(map(sum, zip_longest(now, before, fillvalue=0)))
    return now + before
