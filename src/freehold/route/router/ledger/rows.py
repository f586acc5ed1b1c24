"""What the ledger keeps of a request: who, what, where, why, how much; and the windows that budgets count in.

Then its tables, and a row's way into and out of them. A budget counts an estimated row as what was reserved for it, as
its provider may charge for more than passed here. `requests` is the truth. `spend` holds what its rows and the
reservations of a key's window add up to; triggers keep it, and OPEN_WINDOW makes a window from both, estimated rows at
their estimate. No text of prompt or answer; knows no process and no clock.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

import msgspec

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
        return dict(zip(_OF_INTENT, _intended(self), strict=True))


_OF_INTENT = tuple(f.name for f in fields(Intent))
_intended = attrgetter(*_OF_INTENT)


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
    sound_ms: int = 0  # of a recording: how long it is


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


# --- the tables ------------------------------------------------------------------------------------

VERSION = 2  # user_version of the file; a newer one is refused
SOUND_SINCE = 2  # whose rows have sound_ms, as the last column


@dataclass(frozen=True, slots=True)
class RowDetail:
    """What no query groups or sums by."""

    labels: tuple[SetLabel, ...]
    candidates: tuple[Candidate, ...]
    attempts: tuple[Attempt, ...]


_TEXT, _WHOLE, _FLAG, _SECONDS = "TEXT NOT NULL", "INTEGER NOT NULL", "INTEGER NOT NULL", "REAL NOT NULL"
# The columns of `requests` in their order: each one's type. Its value is LedgerRow's field of the same name, but for
# _USAGE, for `labels`, names joined by commas, and for `detail`, a RowDetail in JSON.
COLUMNS: Mapping[str, str] = {
    "id": "TEXT PRIMARY KEY",
    "at": _SECONDS,
    **dict.fromkeys(("request_id", "answer_id", "key", "door", "asked", "target", "place"), _TEXT),
    "owned": _FLAG,
    **dict.fromkeys(("labels", "task", "outcome", "finish_reason"), _TEXT),
    **dict.fromkeys(("prompt", "completion", "cached", "written", "written_hour", "thought"), _WHOLE),
    **dict.fromkeys(("prefill_s", "decode_s"), _SECONDS),
    "nano": f"{_WHOLE} CHECK (nano >= 0)",
    "price_version": _TEXT,
    **dict.fromkeys(("estimated", "batch"), _FLAG),
    **dict.fromkeys(("first_s", "whole_s"), _SECONDS),
    "terms": _TEXT,
    "may_teach": "INTEGER",
    "upstream_id": _TEXT,
    "left_house": _FLAG,
    "parent": _TEXT,
    "detail": "BLOB NOT NULL",
    "sound_ms": f"{_WHOLE} DEFAULT 0",
}
_FLAGS = ("owned", "estimated", "batch", "may_teach", "left_house")
_USAGE = {  # column -> field of Usage
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "cached": "cached_tokens",
    "written": "written_tokens",
    "written_hour": "written_hour_tokens",
    "thought": "thought_tokens",
    "prefill_s": "prefill_s",
    "decode_s": "decode_s",
}
NAMES = ", ".join(COLUMNS)
# A row that is there already is kept, and settles nothing a second time.
INSERT = f"INSERT OR IGNORE INTO requests ({NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"
# An id begins with the time (rows.row_id), so that the primary key is also the order by time: one index for a row,
# always at its end. Each further index would cost a page in the log a request.
TABLES = f"""
CREATE TABLE requests ({", ".join(f"{name} {type_}" for name, type_ in COLUMNS.items())}) WITHOUT ROWID;
CREATE TABLE owners (name TEXT PRIMARY KEY, since REAL NOT NULL, pid INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE deaths (
  owner TEXT PRIMARY KEY, since REAL NOT NULL, pid INTEGER NOT NULL, found REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE reservations (
  id TEXT PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, nano INTEGER NOT NULL CHECK (nano >= 0),
  owner TEXT NOT NULL, sent INTEGER NOT NULL, about BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE spend (
  key TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, spent INTEGER NOT NULL,
  reserved INTEGER NOT NULL, PRIMARY KEY (key, start, stop)
) WITHOUT ROWID;
CREATE TRIGGER reserved AFTER INSERT ON reservations BEGIN
  UPDATE spend SET reserved = reserved + NEW.nano WHERE key = NEW.key AND start <= NEW.at AND stop > NEW.at;
END;
CREATE TRIGGER changed AFTER UPDATE OF nano ON reservations BEGIN
  UPDATE spend SET reserved = reserved + NEW.nano - OLD.nano
    WHERE key = NEW.key AND start <= NEW.at AND stop > NEW.at;
END;
CREATE TRIGGER freed AFTER DELETE ON reservations BEGIN
  UPDATE spend SET reserved = reserved - OLD.nano WHERE key = OLD.key AND start <= OLD.at AND stop > OLD.at;
END;
CREATE TRIGGER settled AFTER INSERT ON requests BEGIN
  UPDATE spend SET spent = spent + max(NEW.nano, CASE WHEN NEW.estimated
      THEN coalesce((SELECT nano FROM reservations WHERE id = NEW.id), 0) ELSE 0 END)
    WHERE key = NEW.key AND start <= NEW.at AND stop > NEW.at AND (NEW.nano > 0 OR NEW.estimated);
  DELETE FROM reservations WHERE id = NEW.id;
END;
"""
# What makes a file of version 1 one of version 2.
ADD_SOUND = f"ALTER TABLE requests ADD COLUMN sound_ms {COLUMNS['sound_ms']}"
RESERVE = """INSERT INTO reservations (id, key, at, nano, owner, sent, about)
  SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 FROM spend
  WHERE key = ?2 AND start = ?8 AND stop = ?9 AND spent + reserved + ?4 <= ?10"""
# The new amount has to fit; a smaller one always does.
CHANGE = """UPDATE reservations SET nano = ?1 WHERE id = ?2 AND (?1 <= nano OR EXISTS (
  SELECT 1 FROM spend WHERE key = reservations.key AND start = ?3 AND stop = ?4
  AND spent + reserved - reservations.nano + ?1 <= ?5))"""
# A process that ended without closing its ledger: what it had in flight without a reservation has no row.
DIED = "INSERT OR IGNORE INTO deaths (owner, since, pid, found) SELECT name, since, pid, ? FROM owners WHERE name = ?"
SENT = "UPDATE reservations SET sent = 1 WHERE id = ?"
SPENT = "SELECT spent, reserved FROM spend WHERE key = ? AND start = ? AND stop = ?"
# What is known of a window when it is first asked for; older windows of the key are of no use any more.
CLOSE_WINDOWS = "DELETE FROM spend WHERE key = ? AND stop <= ?"
OPEN_WINDOW = """INSERT OR IGNORE INTO spend (key, start, stop, spent, reserved) SELECT ?1, ?2, ?3,
  (SELECT coalesce(sum(nano), 0) FROM requests WHERE id >= ?4 AND key = ?1 AND at >= ?2 AND at < ?3),
  (SELECT coalesce(sum(nano), 0) FROM reservations WHERE key = ?1 AND at >= ?2 AND at < ?3)"""

_encode = msgspec.json.Encoder().encode
detail_of = msgspec.json.Decoder(RowDetail).decode
_FIELDS = {name: f"usage.{_USAGE[name]}" if name in _USAGE else name for name in COLUMNS}
_values = attrgetter(*(_FIELDS | {"detail": "id"}).values())
_LABELS, _DETAIL = (list(COLUMNS).index(name) for name in ("labels", "detail"))


def of_row(row: LedgerRow) -> tuple[object, ...]:
    """Return a row's values in the order of COLUMNS."""
    values = [*_values(row)]
    values[_LABELS] = ",".join(sorted({label.name for label in row.labels})) if row.labels else ""
    values[_DETAIL] = _encode(RowDetail(row.labels, row.candidates, row.attempts))
    return tuple(values)


def row_of(values: tuple[Any, ...]) -> LedgerRow:
    """Return the row of a SELECT of NAMES."""
    row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    detail = detail_of(row.pop("detail"))
    row["usage"] = Usage(**{field: row.pop(column) for column, field in _USAGE.items()})
    for name in _FLAGS:
        row[name] = None if row[name] is None else bool(row[name])
    row |= {"labels": detail.labels, "candidates": detail.candidates, "attempts": detail.attempts}
    return LedgerRow(**row)
