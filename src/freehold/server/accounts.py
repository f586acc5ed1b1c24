"""What each key has asked and spent, and whether it may go on: a token bucket, and a day's budget that restarts keep.

Counts tokens of prompts and answers by the day (UTC) in SQLite: a row a key and day, written when an answer ends, so
that a server that is killed forgets at most what was under way. Knows keys' names; knows no protocol and no model.
Path: Endpoint -> Accounts.admit; scope.Metered -> Accounts.check, Accounts.spend
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from freehold.errors import StoreError
from freehold.server.keys import Key, quota
from freehold.server.problems import Refused

DAY_S = 86400
KEPT_DAYS = 400
# Text that is only tokenized costs the machine a hundredth of a prompt's: a megabyte of it takes a second, as much as
# some thousand tokens of a small model.
COUNTED_PER_TOKEN = 100
MAX_COUNTING = 16  # requests of one key that count tokens at a time: a quarter of what waits for a model


@dataclass(slots=True)
class Bucket:
    """What a key may ask at once: `left` requests at `since`, filled up at its rate."""

    left: float
    since: float


class Accounts:
    """The account of every key. `path` None: forgotten with the process."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._now = clock, now
        self._buckets: dict[str, Bucket] = {}
        self._counting: Counter[str] = Counter()
        self._db = _opened(path)
        self._db.execute("DELETE FROM spent WHERE day < ?", (self._day() - KEPT_DAYS,))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def admit(self, key: Key) -> None:
        """Take one request from the key's bucket; 429 when it is empty."""
        if not key.rate:
            return
        allowed, now = quota(key.rate), self._clock()
        most = max(allowed.amount, 1.0)
        bucket = self._buckets.get(key.name) or Bucket(most, now)
        per_s = allowed.amount / allowed.seconds
        left = min(most, bucket.left + (now - bucket.since) * per_s)
        self._buckets[key.name] = Bucket(left - 1 if left >= 1 else left, now)
        if left < 1:
            wait = (1 - left) / per_s
            raise _too_many(
                f"the key {key.name} may ask {key.rate}, and has; the next request in {wait:.1f} s",
                "rate_limit_exceeded",
                wait,
            )

    def check(self, key: Key) -> None:
        """Refuse (429) a key whose day's budget is spent; what is under way then comes to its end."""
        if not key.tokens:
            return
        most, spent = quota(key.tokens).amount, self.spent(key.name)
        if spent >= most:
            wait = DAY_S - self._now() % DAY_S
            raise _too_many(
                f"the key {key.name} has spent {spent:,} tokens today, its budget is {most:,.0f}; "
                f"the next day (UTC) begins in {wait / 3600:.1f} h",
                "insufficient_quota",
                wait,
            )

    @contextmanager
    def counting(self, key: Key, size: int) -> Iterator[None]:
        """Let a key count the tokens of `size` characters or ids, and book them; 429 beyond MAX_COUNTING at a time.

        Booked by size, four characters a token, so that a client that hangs up is booked too.
        """
        self.check(key)
        if self._counting[key.name] >= MAX_COUNTING:
            raise _too_many(
                f"the key {key.name} has {MAX_COUNTING} requests that count tokens, as many as it may",
                "too_many_counts",
                1.0,
            )
        self._counting[key.name] += 1
        try:
            yield
        finally:
            self._counting[key.name] -= 1
            self.spend(key.name, -(-size // (4 * COUNTED_PER_TOKEN)))

    def spend(self, name: str, tokens: int) -> None:
        """Book an answer's tokens, its prompt's among them."""
        self._db.execute(
            "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens",
            (name, self._day(), tokens),
        )

    def spent(self, name: str) -> int:
        """Return what the key of this name has spent today."""
        return self.today().get(name, 0)

    def today(self) -> Mapping[str, int]:
        """Return today's tokens by name."""
        return dict(self._db.execute("SELECT name, tokens FROM spent WHERE day = ?", (self._day(),)))

    def _day(self) -> int:
        return int(self._now() // DAY_S)


def _opened(path: Path | None) -> sqlite3.Connection:
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=5)
        # In WAL without a sync for each row, a killed process loses nothing and a machine without power a moment.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(
            "CREATE TABLE IF NOT EXISTS spent (name TEXT, day INTEGER, tokens INTEGER, PRIMARY KEY (day, name))"
            " WITHOUT ROWID"
        )
    except (sqlite3.Error, OSError) as e:
        raise StoreError(f"the keys' accounts in {path} cannot be opened: {e}") from e
    return db


def _too_many(message: str, code: str, wait_s: float) -> Refused:
    after = (b"retry-after", b"%d" % max(1, round(wait_s + 0.5)))
    # A client that asks again by itself waits a minute at most; a day is not for it.
    more = () if wait_s < 60 else ((b"x-should-retry", b"false"),)
    return Refused(429, message, code=code, headers=(after, *more))
