"""Reads a ledger without changing it, also while a server writes it: rows, sums by group, what it proves of a label.

Knows rows and columns, and no gateway.toml; opens the file for reading alone.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from freehold.base.errors import LedgerUnavailable, ModelNotFound, StoreError, UsageError
from freehold.route.providers.contract import HOUSE
from freehold.route.router.ledger import rows as schema
from freehold.route.router.ledger.rows import DAY_S, LedgerRow, first_id

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
    query = f"SELECT {schema.NAMES} FROM requests WHERE {_SPAN} ORDER BY id"
    with reading(path) as db:
        for values in db.execute(query, _span(since, until)):
            yield schema.row_of(values)


def find(path: Path, name: str) -> tuple[LedgerRow, ...]:
    """Return the rows of a request, the newest first: its own and those of its shadows and discarded answers.

    `name`: the request's id, the answer's (with or without its protocol's prefix), the provider's, or the row's.
    """
    bare = name.rpartition("-")[2] if "_" not in name else name.rpartition("_")[2]
    query = f"""SELECT {schema.NAMES} FROM requests WHERE id = ?1 OR request_id IN (?1, ?2) OR answer_id IN (?1, ?2)
      OR upstream_id = ?1 ORDER BY id DESC LIMIT 100"""
    with reading(path) as db:
        rows = [schema.row_of(values) for values in db.execute(query, (name, bare or name))]
        beside = f"SELECT {schema.NAMES} FROM requests WHERE parent = ? ORDER BY id DESC LIMIT 100"
        known = {row.id for row in rows}
        more = [schema.row_of(v) for row in rows for v in db.execute(beside, (row.id,))]
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
            if not 1 <= version <= schema.VERSION:
                raise StoreError(
                    f"the ledger {path} has version {version}; this Freehold reads version {schema.VERSION}",
                    "use the Freehold that wrote it",
                )
            if version < schema.SOUND_SINCE:  # the next server that writes it adds the column
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
            places = {attempt.place for attempt in schema.detail_of(detail).attempts} or {place} - {""}
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
