"""Usage of each key: a token bucket for requests, and a daily token budget that survives restarts.

Counts tokens of prompts and answers by the day (UTC) in memory, and keeps them in a folder, a file a day, written
behind: a server that is killed forgets SAVE_S of them, one whose disk is full continues and catches up. What requests
in flight may still cost is reserved, so that no number of them at once exceeds a budget. Knows keys' names; knows no
protocol and no model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import msgspec

from freehold.base import private
from freehold.base.errors import StoreError
from freehold.run.store.manifest import write_json
from freehold.serve.http.core.keys import Key, quota
from freehold.serve.http.core.problems import Refused

_log = logging.getLogger("freehold.serve.http")
DAY_S = 86400
SAVE_S = 1.0  # between two writes, and before one that failed is tried again
EPOCH = date(1970, 1, 1).toordinal()
KEPT_DAYS = 400
# Text that is only tokenized costs the machine a hundredth of a prompt's: a megabyte of it takes a second, as much as
# some thousand tokens of a small model.
COUNTED_PER_TOKEN = 100
MAX_COUNTING = 16  # requests of one key that count tokens at a time: a quarter of what waits for a model


@dataclass(slots=True)
class Bucket:
    """Token bucket of a key: `left` requests at `since`, refilled at its rate."""

    left: float
    since: float


class Reserved:
    """Tokens of a key's budget that one request may still cost."""

    def __init__(self, accounts: Accounts, name: str, tokens: int) -> None:
        self._accounts, self._name, self.tokens = accounts, name, 0
        self.keep(tokens)

    def keep(self, tokens: int) -> None:
        """Set aside this many instead."""
        self._accounts.set_aside(self._name, tokens - self.tokens)
        self.tokens = tokens

    def spend(self, tokens: int) -> None:
        """Book tokens; they are set aside no more."""
        self._accounts.spend(self._name, tokens)
        self.keep(max(self.tokens - tokens, 0))

    def close(self) -> None:
        """Give back what is set aside."""
        self.keep(0)


class Accounts:
    """The account of every key. `folder` None: forgotten with the process."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._clock, self._now = folder, clock, now
        self._buckets: dict[str, Bucket] = {}
        self._counting: Counter[str] = Counter()
        self._reserved: Counter[str] = Counter()
        self._given_back: dict[str, asyncio.Event] = {}  # name -> set when some of its reserved tokens are
        # day -> name -> tokens; more than one day while unsaved
        self._spent = {self._day(): self._read(self._day())}
        self._unsaved: set[int] = set()
        self.trouble = ""  # why the accounts cannot be saved now; "" while they can
        self._failing_since = 0.0

    @property
    def failing_s(self) -> float:
        """Seconds for which they could not be saved."""
        return self._clock() - self._failing_since if self.trouble else 0.0

    def unsaved(self) -> str:
        """Return a sentence about accounts that cannot be saved now; "" while they can."""
        if not self.trouble:
            return ""
        return (
            f"token counts of keys cannot be saved ({self.trouble}) for {self.failing_s:.0f} s; "
            "they are kept in memory and saved once the disk has free space"
        )

    async def keep(self) -> None:
        """Save what was spent, again and again until cancelled."""
        self._prune()
        while True:
            await asyncio.sleep(SAVE_S)
            if self._unsaved:
                await asyncio.to_thread(self.save)
                self._forget_saved()

    def save(self) -> None:
        """Write each changed day's file anew, beside the old one and renamed over it.

        What fails is logged once, and kept for the next time.
        """
        for day in sorted(self._unsaved) if self._folder is not None else ():
            self._unsaved.discard(day)  # before the copy: what is spent meanwhile is saved the next time
            try:
                self._write(day, dict(self._spent[day]))
            except OSError as e:
                self._unsaved.add(day)
                if not self.trouble:
                    self._failing_since = self._clock()
                    _log.error("token counts of keys cannot be saved, and are kept in memory: %s", e)
                self.trouble = e.strerror or str(e)
                return
        if self.trouble:
            _log.warning("token counts of keys were saved again, after %.0f s", self.failing_s)
            self.trouble = ""

    def _forget_saved(self) -> None:
        """Forget the days that are saved and over. Not while they are saved, which is in another thread."""
        for day in self._spent.keys() - self._unsaved - {self._day()}:
            del self._spent[day]

    def _write(self, day: int, spent: dict[str, int]) -> None:
        path = self._file(day)
        private.folder(path.parent)
        write_json(path, spent)

    def close(self) -> None:
        """Save what is left."""
        self.save()

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
                f"the key {key.name} has used its rate of {key.rate}; the next request in {wait:.1f} s",
                "rate_limit_exceeded",
                wait,
            )

    def left(self, key: Key) -> int:
        """Return how much of the day's budget is not spent, what is reserved included.

        Raises Refused (429) where nothing is left.
        """
        most, spent = int(quota(key.tokens).amount), self.spent(key.name)
        if spent >= most:
            raise self.too_little(key, f"has spent {spent:,} tokens today, its budget is {most:,}")
        return most - spent

    def too_little(self, key: Key, why: str) -> Refused:
        """Return the refusal (429) of what the day's budget does not cover."""
        wait = DAY_S - self._now() % DAY_S
        return _too_many(
            f"the key {key.name} {why}; the next day (UTC) begins in {wait / 3600:.1f} h",
            "insufficient_quota",
            wait,
        )

    def reserve(self, key: Key, tokens: int) -> Reserved | None:
        """Set aside what a request may cost; None where that is more than the budget has beside other requests'."""
        if self._reserved[key.name] + tokens > self.left(key):
            return None
        return Reserved(self, key.name, tokens)

    def set_aside(self, name: str, more: int) -> None:
        """Reserve more tokens, or fewer."""
        self._reserved[name] += more
        if not self._reserved[name]:
            del self._reserved[name]
        if more < 0 and (given_back := self._given_back.pop(name, None)) is not None:
            given_back.set()

    async def given_back(self, key: Key) -> None:
        """Wait until reserved tokens of a key are given back; not at all where none is reserved."""
        if self._reserved[key.name]:
            await self._given_back.setdefault(key.name, asyncio.Event()).wait()

    def in_use(self, key: Key, tokens: int) -> Refused:
        """Return the refusal (429) of a request whose tokens those in flight do not give back."""
        return _too_many(
            f"requests of the key {key.name} in progress may cost {self._reserved[key.name]:,} tokens, and its "
            f"budget for today cannot cover {tokens:,} more; try again when one has ended, or request fewer",
            "budget_in_use",
            1.0,
        )

    @contextmanager
    def counting(self, key: Key, size: int) -> Iterator[None]:
        """Let a key count the tokens of `size` characters or ids, and book them; 429 beyond MAX_COUNTING at a time.

        Booked by size, four characters a token, so that a client that hangs up is booked too.
        """
        if key.tokens:
            self.left(key)
        if self._counting[key.name] >= MAX_COUNTING:
            raise _too_many(
                f"the key {key.name} has {MAX_COUNTING} requests that count tokens, which is the limit",
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
        day = self._day()  # once: a day may begin at any moment, and so may the clock be set
        spent = self._of(day)
        spent[name] = spent.get(name, 0) + tokens
        self._unsaved.add(day)

    def spent(self, name: str) -> int:
        """Return what the key of this name has spent today."""
        return self._today().get(name, 0)

    def today(self) -> Mapping[str, int]:
        """Return today's tokens by name."""
        return dict(self._today())

    def days(self, count: int) -> dict[str, dict[str, int]]:
        """Return the tokens of the last `count` days that are kept, by day (ISO) and name, the latest first."""
        today, days_spent = self._day(), {}
        for day in range(today, today - min(count, KEPT_DAYS), -1):
            if spent := (dict(self._today()) if day == today else self._read(day)):
                days_spent[date.fromordinal(EPOCH + day).isoformat()] = spent
        return days_spent

    def _today(self) -> dict[str, int]:
        return self._of(self._day())

    def _of(self, day: int) -> dict[str, int]:
        if day not in self._spent:
            self._spent[day] = self._read_again(day)
        return self._spent[day]

    def _read_again(self, day: int) -> dict[str, int]:
        """Return what is kept of a day that begins now: nothing, unless the clock was set back to it."""
        try:
            return self._read(day)
        except StoreError as e:
            _log.error("%s", e)
            return {}

    def _day(self) -> int:
        return int(self._now() // DAY_S)

    def _file(self, day: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{date.fromordinal(EPOCH + day)}.json"

    def _read(self, day: int) -> dict[str, int]:
        if self._folder is None:
            return {}
        try:
            return msgspec.json.decode(self._file(day).read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as e:
            message = f"the keys' accounts in {self._file(day)} cannot be read: {e}"
            raise StoreError(message, "move that file away; what keys spent today is then forgotten") from e

    def _prune(self) -> None:
        if self._folder is not None:
            oldest = f"{date.fromordinal(EPOCH + self._day() - KEPT_DAYS)}.json"
            for file in self._folder.glob("*.json"):
                if file.name < oldest:
                    file.unlink(missing_ok=True)


def _too_many(message: str, code: str, wait_s: float) -> Refused:
    after = (b"retry-after", b"%d" % max(1, round(wait_s + 0.5)))
    # A client that asks again by itself waits a minute at most; a day is not for it.
    more = () if wait_s < 60 else ((b"x-should-retry", b"false"),)
    return Refused(429, message, code=code, headers=(after, *more))
