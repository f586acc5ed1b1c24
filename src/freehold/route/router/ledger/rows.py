"""What the ledger keeps of a request: who, what, where, why, how much; and the windows that budgets count in.

Values only; no text of prompt or answer.
"""

from __future__ import annotations

import itertools
import os
import secrets
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from freehold.base.types import Usage
from freehold.route.providers.contract import SetLabel
from freehold.route.router.gateway import Period, SpendLimit
from freehold.route.router.price import NANO

NOTHING = Usage(0, 0)
Outcome = Literal[
    "whole",  # the answer ended as its wire says
    "broken",  # the provider's stream broke after its first token
    "left",  # the client went away
    "failed",  # no target answered
    "refused",  # policy or budget
    "lost",  # this process died in the middle; found at the next start
    "shadow",  # asked beside another row's answer
    "discarded",  # a cascade's first answer that was not good enough
    "cached",  # answered from the gateway's own cache
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target that a route has, and why it was taken or passed over."""

    target: str
    taken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request that was sent to a target. `cause` "" where it answered."""

    target: str
    place: str
    cause: str
    status: int
    seconds: float
    nano: int = 0  # what this attempt cost


@dataclass(frozen=True, slots=True)
class Intent:
    """What is known of a request when its money is reserved: all that is left of it if this process is killed."""

    request_id: str = ""
    answer_id: str = ""
    door: str = ""
    asked: str = ""
    target: str = ""  # the dearest that it may reach
    place: str = ""
    labels: tuple[SetLabel, ...] = ()
    task: str = ""
    price_version: str = ""

    def values(self) -> dict[str, Any]:
        """Return the fields, each of which is also one of a LedgerRow."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money of a key's budget, set aside for a row until that is booked."""

    id: str  # the row's
    key: str
    limit: SpendLimit  # the key's budget
    nano: int  # nano-dollars that the request may cost
    at: float  # time.time() of the request's arrival, which decides the window
    sent: bool = True  # False: a target that costs nothing is asked first, and no provider may charge yet
    about: Intent = Intent()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One request. `nano`: nano-dollars of all its attempts together.

    Sums add up all rows, so a cost is in one row alone: what a shadow or a discarded answer cost is in its own row,
    and not in that of its `parent`.
    """

    id: str  # of row_id(); the row's own
    at: float  # time.time() of its arrival
    request_id: str
    answer_id: str
    key: str
    door: str
    asked: str  # the name in the request
    target: str  # what answered, or ""
    place: str  # where: HOUSE, a provider's name, or ""
    owned: bool
    labels: tuple[SetLabel, ...]
    task: str
    candidates: tuple[Candidate, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    usage: Usage = NOTHING
    nano: int
    price_version: str
    estimated: bool  # tokens were counted here, as the provider sent no usage
    batch: bool = False
    outcome: Outcome
    finish_reason: str = ""
    first_s: float = 0.0
    whole_s: float = 0.0
    terms: str = ""  # licence or terms of what answered
    may_teach: bool | None = None
    upstream_id: str = ""  # the provider's id of the answer
    left_house: bool = False  # whether any attempt sent the prompt to a place that is not owned
    parent: str = ""  # of a shadow's or a discarded answer's row: the request's row


class _Ids:
    """What tells this process's ids from any other's; a forked child has its own."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.process, self.numbers = secrets.token_hex(6), itertools.count()


_ids = _Ids()


def row_id(at: float) -> str:
    """Return a new id for a row of the moment `at`; ids sort as their moments do, to the microsecond."""
    return f"{first_id(at)}-{_ids.process}-{next(_ids.numbers):x}"


def first_id(at: float) -> str:
    """Return what no id of `at` or of a later moment is less than."""
    return f"{int(at * 1e6):016x}"


def usd(nano: int) -> str:
    """Return nano-dollars as dollars, exact: 0.000104 USD."""
    whole, rest = divmod(nano, NANO)
    digits = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{whole:,}.{digits} USD"


# --- the windows of a budget: hours, days, weeks from Monday and months, all in UTC -----------------

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
