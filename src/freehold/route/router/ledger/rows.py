"""What the ledger keeps of a request: who, what, where, why, how much; and the windows that budgets count in.

Then its tables, and a row's way into and out of them. A budget counts an estimated row as what was reserved for it, as
its provider may charge for more than passed here. `requests` is the truth. `spend` holds what its rows and the
reservations of a key's window add up to; triggers keep it, and OPEN_WINDOW makes a window from both, estimated rows at
their estimate.

A ledger is read without changing it, also while a server writes it: rows, sums by group, and what it proves of a
label. No text of prompt or answer; knows no gateway.toml, no process and no clock.
"""

from __future__ import annotations

import itertools
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec

from freehold.base.errors import LedgerUnavailable, ModelNotFound, StoreError, UsageError
from freehold.base.types import Usage
from freehold.route.providers.contract import HOUSE, SetLabel
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


# --- reading a ledger ------------------------------------------------------------------------------

# What rows can be grouped by, and the column or expression of each.
GROUPS = {
    "model": "target",
    "route": "asked",
    "key": "key",
    "task": "task",
    "place": "place",
    "label": "labels",  # of a request with several: all of them, as one group
    "door": "door",
    "outcome": "outcome",
    "day": "date(at, 'unixepoch')",
}
_SUMS = """count(*), sum(outcome IN ('whole', 'cached')), sum(nano), sum(nano * estimated), sum(prompt), sum(cached),
  sum(written + written_hour), sum(completion), sum(thought), avg(CASE WHEN first_s > 0 THEN first_s END),
  avg(CASE WHEN outcome = 'whole' THEN whole_s END), sum(sound_ms)"""
_SPAN = "id >= ? AND at >= ? AND at < ?"


@dataclass(frozen=True, slots=True)
class LedgerSum:
    """Rows of one group. Shadows and answers that a cascade discarded are rows of their own."""

    group: tuple[str, ...]  # values of the groups asked for
    rows: int
    whole: int  # that were answered whole
    nano: int  # nano-dollars,
    estimated: int  # and those of them whose tokens no provider counted
    prompt: int  # tokens, cached and written ones included
    cached: int
    written: int
    completion: int  # tokens, thought ones included
    thought: int
    first_s: float  # mean, where a first token came
    whole_s: float  # mean of whole answers
    sound_ms: int  # of recordings


def sums(
    path: Path, since: float, until: float, by: Sequence[str] = (), *, key: str | None = None
) -> tuple[LedgerSum, ...]:
    """Return sums by group, the dearest first; without groups one sum of everything. Raises UsageError.

    `key`: only requests of the key of this name.
    """
    for name in by:
        if name not in GROUPS:
            raise UsageError(f"the ledger has no group {name!r}", f"choose among {', '.join(GROUPS)}")
    names = ", ".join(GROUPS[name] for name in by)
    columns = f"{names}, {_SUMS}" if by else _SUMS
    grouped = f" GROUP BY {names} ORDER BY sum(nano) DESC, count(*) DESC, {names}" if by else ""
    own, values = ("", ()) if key is None else (" AND key = ?", (key,))
    query = f"SELECT {columns} FROM requests WHERE {_SPAN}{own}{grouped}"
    with reading(path) as db:
        rows = db.execute(query, (*_span(since, until), *values)).fetchall()
    return tuple(LedgerSum(tuple(row[: len(by)]), *(value or 0 for value in row[len(by) :])) for row in rows)


def rows_in(path: Path, since: float, until: float) -> Iterator[LedgerRow]:
    """Yield the rows of a span, in the order of their ids."""
    query = f"SELECT {NAMES} FROM requests WHERE {_SPAN} ORDER BY id"
    with reading(path) as db:
        for values in db.execute(query, _span(since, until)):
            yield row_of(values)


def find(path: Path, name: str) -> tuple[LedgerRow, ...]:
    """Return the rows of a request, the newest first: its own and those of its shadows and discarded answers.

    `name`: the request's id, the answer's (with or without its protocol's prefix), the provider's, or the row's.
    """
    bare = name.rpartition("-")[2] if "_" not in name else name.rpartition("_")[2]
    query = f"""SELECT {NAMES} FROM requests WHERE id = ?1 OR request_id IN (?1, ?2) OR answer_id IN (?1, ?2)
      OR upstream_id = ?1 ORDER BY id DESC LIMIT 100"""
    with reading(path) as db:
        rows = [row_of(values) for values in db.execute(query, (name, bare or name))]
        beside = f"SELECT {NAMES} FROM requests WHERE parent = ? ORDER BY id DESC LIMIT 100"
        known = {row.id for row in rows}
        more = [row_of(v) for row in rows for v in db.execute(beside, (row.id,))]
    return (*rows, *(row for row in more if row.id not in known))


def _span(since: float, until: float) -> tuple[object, ...]:
    # Ids are made at arrival; a day's grace for a clock that was set.
    return first_id(max(since - DAY_S, 0)), since, until


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger to read one state of it.

    Raises ModelNotFound where there is no file, StoreError for another version, LedgerUnavailable for one that cannot
    be read.
    """
    if not path.is_file():
        raise ModelNotFound(f"there is no ledger {path}", "a server with --gateway writes one")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if not 1 <= version <= VERSION:
                raise StoreError(
                    f"the ledger {path} has version {version}; this Freehold reads version {VERSION}",
                    "use the Freehold that wrote it",
                )
            if version < SOUND_SINCE:  # the next server that writes it adds the column
                db.execute("CREATE TEMP VIEW requests AS SELECT *, 0 AS sound_ms FROM main.requests")
            db.execute("BEGIN")
            yield db
    except (sqlite3.Error, msgspec.MsgspecError) as e:
        raise LedgerUnavailable(f"the ledger {path} cannot be read: {e}") from None


# --- sums of a ledger as plain values: what `freehold ledger --json` prints and the page shows ------

SCHEMA = 1


def sums_json(
    path: Path, since: float, until: float, by: Sequence[str], *, key: str | None = None
) -> dict[str, Any]:
    """Return the sums of a span by group, and of all of it; `key`: of that key's requests alone. Raises UsageError."""
    (total,) = sums(path, since, until, key=key)
    sums_found = [sum_json(by, one) for one in sums(path, since, until, by, key=key)]
    return {
        "schema": SCHEMA,
        "since": since,
        "until": until,
        "by": list(by),
        "sums": sums_found,
        "total": sum_json((), total),
    }


def sum_json(names: Sequence[str], one: LedgerSum) -> dict[str, Any]:
    """Return a sum with the values of its groups by their names."""
    plain = asdict(one)
    del plain["group"]
    return {**dict(zip(names, one.group, strict=True)), **plain}


# --- what the ledger can prove of a label -----------------------------------------------------------
# Which of its requests went to a provider, to which, and what it cannot know. The file of that time may be gone, so a
# place is owned if a row says so.

EXAMPLES = 20  # rows that are named
# labels are joined by commas in the row
_ROWS = """SELECT id, at, outcome, place, owned, left_house, detail FROM requests
  WHERE id >= ?1 AND at >= ?2 AND at < ?3 AND instr(',' || labels || ',', ',' || ?4 || ',') > 0"""


@dataclass(frozen=True, slots=True)
class Departure:
    """A request that was sent to places that are not owned."""

    id: str
    at: float
    places: tuple[str, ...]
    outcome: str


@dataclass(frozen=True, slots=True)
class ServerDeath:
    """A server process that did not close its ledger: it was killed between these moments."""

    since: float
    found: float


@dataclass(frozen=True, slots=True)
class LabelAudit:
    """A label's requests in a span of time."""

    label: str
    since: float
    until: float
    rows: int  # with the label
    stayed: int  # of them: sent to owned places alone, or to none
    left: int  # sent to a place that is not owned
    unknown: int  # of processes that were killed: what they had sent is not known
    left_to: dict[str, int]  # place -> requests
    stayed_at: dict[str, int]  # place -> requests; "" for those that were sent nowhere
    outcomes: dict[str, int]
    departures: tuple[Departure, ...]  # the first EXAMPLES
    all_rows: int  # of the span, whatever their labels
    begins: float | None  # moment of the first row of all; None: there is none
    deaths: tuple[ServerDeath, ...]
    other_labels: tuple[str, ...] = ()  # of the span, where no row has the label: it may be misspelt

    @property
    def sure(self) -> int:
        """Requests of which it is known where they were."""
        return self.stayed + self.left


def audit(path: Path, label: str, since: float, until: float) -> LabelAudit:
    """Read a ledger. Raises ModelNotFound where there is no file, LedgerUnavailable for one that cannot be read."""
    with reading(path) as db:
        owned = {HOUSE} | {
            place for (place,) in db.execute("SELECT DISTINCT place FROM requests WHERE owned")
        }
        first = first_id(since - DAY_S)  # ids are made at arrival; a clock that was set back does no harm
        count: Counter[str] = Counter()
        left_to: Counter[str] = Counter()
        stayed_at: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        departures: list[Departure] = []
        for name, at, outcome, place, _, left, detail in db.execute(_ROWS, (first, since, until, label)):
            outcomes[outcome] += 1
            places = {attempt.place for attempt in detail_of(detail).attempts} or {place} - {""}
            if outcome == "lost":
                count["unknown"] += 1
            elif left:
                count["left"] += 1
                away = tuple(sorted(places - owned)) or tuple(sorted(places))
                left_to.update(away)
                departures += [Departure(name, at, away, outcome)] * (len(departures) < EXAMPLES)
            else:
                count["stayed"] += 1
                stayed_at.update(places or {""})
        (all_rows,) = db.execute(
            "SELECT count(*) FROM requests WHERE id >= ? AND at >= ? AND at < ?", (first, since, until)
        ).fetchone()
        (begins,) = db.execute("SELECT min(at) FROM requests").fetchone()
        dead = db.execute("SELECT since, found FROM deaths WHERE found >= ? AND since < ?", (since, until))
        deaths = tuple(ServerDeath(*each) for each in dead)
        others = () if outcomes else _labels(db, first, since, until)
    return LabelAudit(
        label,
        since,
        until,
        rows=sum(outcomes.values()),
        stayed=count["stayed"],
        left=count["left"],
        unknown=count["unknown"],
        left_to=dict(left_to),
        stayed_at=dict(stayed_at),
        outcomes=dict(outcomes),
        departures=tuple(departures),
        all_rows=all_rows,
        begins=begins,
        deaths=deaths,
        other_labels=others,
    )


def _labels(db: sqlite3.Connection, first: str, since: float, until: float) -> tuple[str, ...]:
    rows = db.execute(
        "SELECT DISTINCT labels FROM requests WHERE id >= ? AND at >= ? AND at < ?", (first, since, until)
    )
    return tuple(sorted({label for (labels,) in rows for label in labels.split(",") if label}))
