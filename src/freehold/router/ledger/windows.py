"""The windows of a budget: hours, days, weeks from Monday and months, all in UTC.

Knows the calendar alone.
Path: SpendLimit -> window -> store.Ledger.reserve
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from freehold.router.gateway import Period

HOUR_S, DAY_S = 3600, 86400


@dataclass(frozen=True, slots=True)
class SpendWindow:
    """Seconds since 1970: `start` belongs to it, `stop` to the next."""

    start: int
    stop: int

    def words(self) -> str:
        """Return when the next one begins: 2026-11-28 00:00 UTC."""
        return datetime.fromtimestamp(self.stop, UTC).strftime("%Y-%m-%d %H:%M UTC")


def window(per: Period, at: float) -> SpendWindow:
    """Return the window in which the moment `at` (time.time()) lies."""
    if per == "hour":
        start = int(at // HOUR_S) * HOUR_S
        return SpendWindow(start, start + HOUR_S)
    return _by_day(per, int(at // DAY_S))


@lru_cache(maxsize=64)
def _by_day(per: str, day: int) -> SpendWindow:
    start = datetime.fromtimestamp(day * DAY_S, UTC)
    if per == "day":
        stop = start + timedelta(days=1)
    elif per == "week":
        start -= timedelta(days=start.weekday())
        stop = start + timedelta(days=7)
    else:
        start = start.replace(day=1)
        stop = (start + timedelta(days=32)).replace(day=1)
    return SpendWindow(int(start.timestamp()), int(stop.timestamp()))
