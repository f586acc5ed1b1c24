"""What the ledger can prove of a label: which of its requests went to a provider, to which, and what it cannot know.

Reads a ledger without changing it, also while a server writes it. Knows rows; knows no gateway.toml, as the file of
that time may be gone: a place is owned if a row says so.
Path: cli/audit.py -> audit -> schema.py
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from freehold.providers.cleared import HOUSE
from freehold.router.ledger import schema
from freehold.router.ledger.queries import reading
from freehold.router.ledger.rows import first_id
from freehold.router.ledger.windows import DAY_S

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
            places = _places(detail) or {place} - {""}
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


def _places(detail: bytes) -> set[str]:
    return {attempt.place for attempt in schema.detail_of(detail).attempts}
