"""The ledger's tables, and a row's way into and out of them.

A budget counts an estimated row as what was reserved for it, as its provider may charge for more than passed here.
`requests` is the truth. `spend` holds what its rows and the reservations of a key's window add up to; triggers keep
it, and OPEN_WINDOW makes a window from both, estimated rows at their estimate. Knows no process and no clock.
Path: store.Ledger, recovery.py, queries.py -> INSERT, of_row, row_of
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.providers.cleared import SetLabel
from freehold.router.ledger.rows import Attempt, Candidate, LedgerRow
from freehold.types import Usage

VERSION = 1  # user_version of the file; another one is refused
COLUMNS = (
    *("id", "at", "request_id", "answer_id", "key", "door", "asked", "target", "place", "owned", "labels"),
    *("task", "outcome", "finish_reason", "prompt", "completion", "cached", "written", "written_hour"),
    *("thought", "prefill_s", "decode_s", "nano", "price_version", "estimated", "batch", "first_s"),
    *("whole_s", "terms", "may_teach", "upstream_id", "left_house", "parent", "detail"),
)
NAMES = ", ".join(COLUMNS)
# A row that is there already is kept, and settles nothing a second time.
INSERT = f"INSERT OR IGNORE INTO requests ({NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"
# An id begins with the time (rows.row_id), so that the primary key is also the order by time: one index for a row,
# always at its end. Each further index would cost a page in the log a request.
TABLES = """
CREATE TABLE requests (
  id TEXT PRIMARY KEY, at REAL NOT NULL, request_id TEXT NOT NULL, answer_id TEXT NOT NULL, key TEXT NOT NULL,
  door TEXT NOT NULL, asked TEXT NOT NULL, target TEXT NOT NULL, place TEXT NOT NULL, owned INTEGER NOT NULL,
  labels TEXT NOT NULL, task TEXT NOT NULL, outcome TEXT NOT NULL, finish_reason TEXT NOT NULL,
  prompt INTEGER NOT NULL, completion INTEGER NOT NULL, cached INTEGER NOT NULL, written INTEGER NOT NULL,
  written_hour INTEGER NOT NULL, thought INTEGER NOT NULL, prefill_s REAL NOT NULL, decode_s REAL NOT NULL,
  nano INTEGER NOT NULL CHECK (nano >= 0), price_version TEXT NOT NULL, estimated INTEGER NOT NULL,
  batch INTEGER NOT NULL, first_s REAL NOT NULL, whole_s REAL NOT NULL, terms TEXT NOT NULL, may_teach INTEGER,
  upstream_id TEXT NOT NULL, left_house INTEGER NOT NULL, parent TEXT NOT NULL, detail BLOB NOT NULL
) WITHOUT ROWID;
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

_COUNTED = frozenset(
    ["prompt", "completion", "cached", "written", "written_hour", "thought", "prefill_s", "decode_s"]
)
_PLAIN = tuple(name for name in COLUMNS if name not in {*_COUNTED, "labels", "may_teach", "detail"})


@dataclass(frozen=True, slots=True)
class RowDetail:
    """What no query groups or sums by."""

    labels: tuple[SetLabel, ...]
    candidates: tuple[Candidate, ...]
    attempts: tuple[Attempt, ...]


_encode = msgspec.json.Encoder().encode
detail_of = msgspec.json.Decoder(RowDetail).decode


def of_row(row: LedgerRow) -> tuple[object, ...]:
    """Return a row's values in the order of COLUMNS."""
    used = row.usage
    return (
        *(row.id, row.at, row.request_id, row.answer_id, row.key, row.door, row.asked, row.target, row.place),
        row.owned,
        ",".join(sorted({label.name for label in row.labels})) if row.labels else "",
        *(row.task, row.outcome, row.finish_reason, used.prompt_tokens, used.completion_tokens),
        *(used.cached_tokens, used.written_tokens, used.written_hour_tokens, used.thought_tokens),
        *(used.prefill_s, used.decode_s, row.nano, row.price_version, row.estimated, row.batch, row.first_s),
        *(row.whole_s, row.terms, row.may_teach, row.upstream_id, row.left_house, row.parent),
        _encode(RowDetail(row.labels, row.candidates, row.attempts)),
    )


def row_of(values: tuple[Any, ...]) -> LedgerRow:
    """Return the row of a SELECT of NAMES."""
    v: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    detail = detail_of(v["detail"])
    usage = Usage(
        v["prompt"],
        v["completion"],
        v["cached"],
        v["prefill_s"],
        v["decode_s"],
        written_tokens=v["written"],
        written_hour_tokens=v["written_hour"],
        thought_tokens=v["thought"],
    )
    for name in ("owned", "estimated", "batch", "left_house"):
        v[name] = bool(v[name])
    teach = None if v["may_teach"] is None else bool(v["may_teach"])
    about: dict[str, Any] = {name: v[name] for name in _PLAIN}
    return LedgerRow(
        **about,
        labels=detail.labels,
        candidates=detail.candidates,
        attempts=detail.attempts,
        usage=usage,
        may_teach=teach,
    )
