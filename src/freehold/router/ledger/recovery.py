"""Books what dead processes left: a row "lost" for each reservation whose request may have been charged.

The provider may have answered, and charged, after the process was gone: the row costs what was reserved, marked
`estimated`, so that a key's budget stays above the provider's sum. A request that had not been sent costs nothing.
Path: store.Ledger.open, Ledger.keep -> recover -> OwnerLock.of_the_dead
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from freehold import private
from freehold.providers.cleared import HOUSE
from freehold.router.ledger import schema
from freehold.router.ledger.rows import Intent, LedgerRow
from freehold.types import Usage

_intent = msgspec.json.Decoder(Intent).decode


def recover(db: sqlite3.Connection, path: Path, own: str) -> int:
    """Book what dead owners left; return how many rows that made. `own`: this process's owner name."""
    count = 0
    known = {name for (name,) in db.execute("SELECT name FROM owners")}
    for name in sorted((known | names(path)) - {own}):
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


# --- which processes write to a ledger, and which of them are dead ----------------------------------
# Each holds a lock on a file of its own beside the ledger; the kernel takes the lock away when the process
# ends, however it ends, so that no number of a process is compared, and containers that share the folder see
# each other.


class OwnerLock:
    """A lock on `<ledger>-owner-<name>`, which this process keeps until it ends or releases it."""

    def __init__(self, path: Path, name: str, fd: int) -> None:
        self.name, self._path, self._fd = name, path, fd

    @classmethod
    def make(cls, ledger: Path) -> OwnerLock:
        """Return the lock of a new owner. Raises OSError where the file cannot be made."""
        while True:
            name = secrets.token_hex(8)
            path = _path(ledger, name)
            fd = private.opener(str(path), os.O_RDWR | os.O_CREAT)
            if _locked(fd) and _is_still(path, fd):
                return cls(path, name, fd)
            os.close(fd)  # a process that looks for the dead took it for one's, between the two calls

    @classmethod
    def of_the_dead(cls, ledger: Path, name: str) -> OwnerLock | None:
        """Take the lock of the owner `name` and return it; None while that process lives."""
        path = _path(ledger, name)
        fd = private.opener(str(path), os.O_RDWR | os.O_CREAT)
        if _locked(fd):
            return cls(path, name, fd)
        os.close(fd)
        return None

    def release(self, *, forget: bool) -> None:
        """Give the lock back; `forget`: nothing in the ledger names this owner, and its file can go."""
        if forget:
            with suppress(OSError):
                self._path.unlink()
        os.close(self._fd)


def names(ledger: Path) -> set[str]:
    """Return the owners that have a file; one that was killed as it began is in no table."""
    start = f"{ledger.name}-owner-"
    return {path.name.removeprefix(start) for path in ledger.parent.glob(f"{start}*")}


def _path(ledger: Path, name: str) -> Path:
    return ledger.with_name(f"{ledger.name}-owner-{name}")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
