"""The ledger's tables, and a row's way into and out of them.

A budget counts an estimated row as what was reserved for it, as its provider may charge for more than passed here.
`requests` is the truth. `spend` holds what its rows and the reservations of a key's window add up to; triggers keep
it, and OPEN_WINDOW makes a window from both, estimated rows at their estimate. Knows no process and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from freehold.base.types import Usage
from freehold.route.providers.contract import SetLabel
from freehold.route.router.ledger.rows import Attempt, Candidate, LedgerRow

VERSION = 1  # user_version of the file; another one is refused


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
