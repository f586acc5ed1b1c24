"""Bytes of recordings that lie on the server's disk until their requests are over: of one caller, and of all.

A recording counts as soon as its request has stated a length, so that many at once fit together; one that states none
counts as it comes. Knows bytes and callers; knows no file and no form of sound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from freehold.run.store.space import human
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.problems import Refused

AGAIN_S = 30  # after which a caller may ask again


@dataclass(slots=True)
class Spools:
    """Those of all requests in progress."""

    counts: Counter[str] = field(default_factory=Counter)  # caller -> bytes

    @contextmanager
    def of(self, caller: str, stated: int, limits: ServerLimits) -> Iterator[Spool]:
        """Count a recording of `stated` bytes or more until the end. Raises Refused (429)."""
        spool = Spool(self, caller, limits)
        try:
            spool.take(stated)
            yield spool
        finally:
            self.counts[caller] -= spool.bytes
            self.counts += Counter()  # drops those at zero


@dataclass(slots=True)
class Spool:
    """One recording. `bytes`: that count for it."""

    _all: Spools
    _caller: str
    _limits: ServerLimits
    bytes: int = 0
    _came: int = 0

    def came(self, more: int) -> None:
        """Count bytes that are written next. Raises Refused (429)."""
        self._came += more
        if self._came > self.bytes:
            self.take(self._came)

    def take(self, size: int) -> None:
        """Count `size` bytes in place of those before. Raises Refused (429); one alone is never refused."""
        counts, more = self._all.counts, size - self.bytes
        own, total = counts[self._caller] - self.bytes, counts.total() - self.bytes
        if own and own + size > self._limits.caller_sounds_bytes:
            raise _too_many("your recordings in progress have", own, size, self._limits.caller_sounds_bytes)
        if total and total + size > self._limits.sounds_bytes:
            raise _too_many(
                "recordings in progress, of all clients, have", total, size, self._limits.sounds_bytes
            )
        counts[self._caller] += more
        self.bytes = size


def _too_many(whose: str, others: int, size: int, most: int) -> Refused:
    return Refused(
        429,
        f"{whose} {human(others)}, and this one {human(size)}; the limit is {human(most)}: ask again "
        "when one has ended, or send it as Opus or MP3",
        code="too_many_recordings",
        headers=((b"retry-after", b"%d" % AGAIN_S), (b"connection", b"close")),
    )
