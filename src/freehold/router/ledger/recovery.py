"""Books what dead processes left: a row "lost" for each reservation whose request may have been charged.

The provider may have answered, and charged, after the process was gone: the row costs what was reserved, marked
`estimated`, so that a key's budget stays above the provider's sum. A request that had not been sent costs nothing.
Path: store.Ledger.open, Ledger.keep -> recover -> OwnerLock.of_the_dead
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec

from freehold.providers.cleared import HOUSE
from freehold.router.ledger import owners, schema
from freehold.router.ledger.owners import OwnerLock
from freehold.router.ledger.rows import Intent, LedgerRow
from freehold.types import Usage

_intent = msgspec.json.Decoder(Intent).decode


def recover(db: sqlite3.Connection, path: Path, own: str) -> int:
    """Book what dead owners left; return how many rows that made. `own`: this process's owner name."""
    count = 0
    known = {name for (name,) in db.execute("SELECT name FROM owners")}
    for name in sorted((known | owners.names(path)) - {own}):
        lock = OwnerLock.of_the_dead(path, name)
        if lock is None:
            continue
        forget = False
        try:
            count += _book(db, name)
            forget = True
        finally:
            lock.release(forget=forget)
    return count


def _book(db: sqlite3.Connection, owner: str) -> int:
    """Turn an owner's reservations into rows, and forget it, in one transaction."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        query = "SELECT id, key, at, nano, sent, about FROM reservations WHERE owner = ?"
        rows = db.execute(query, (owner,)).fetchall()
        for name, key, at, nano, sent, about in rows:
            row = _lost(name, key, at, nano if sent else 0, _intent(about))
            db.execute(schema.INSERT, schema.of_row(row))
        db.execute("DELETE FROM reservations WHERE owner = ?", (owner,))
        db.execute(schema.DIED, (time.time(), owner))
        db.execute("DELETE FROM owners WHERE name = ?", (owner,))
    return len(rows)


def _lost(name: str, key: str, at: float, nano: int, about: Intent) -> LedgerRow:
    return LedgerRow(
        id=name,
        at=at,
        request_id=about.request_id,
        answer_id=about.answer_id,
        key=key,
        door=about.door,
        asked=about.asked,
        target=about.target,
        place=about.place,
        owned=about.place == HOUSE,
        labels=about.labels,
        task=about.task,
        candidates=(),
        attempts=(),
        usage=Usage(0, 0),
        nano=nano,
        price_version=about.price_version,
        estimated=nano > 0,  # a request that reached no provider is known to cost nothing
        batch=False,
        outcome="lost",
        finish_reason="",
        first_s=0.0,
        whole_s=0.0,
        terms="",
        may_teach=None,
        left_house=nano > 0,
    )
