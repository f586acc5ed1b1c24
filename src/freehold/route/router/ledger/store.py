"""The ledger in one SQLite file: money is reserved before a request is sent, and its row committed before it ends.

Writes happen on the event loop: a row is a few dozen microseconds, and the write-ahead log is not synchronized in
them. Nothing waits inside SQLite: where another process holds the file, callers wait asynchronously, LOCK_WAIT_S at
most. A process that is killed loses no row. A power cut may lose the last rows written since the last checkpoint,
never the file. Knows no route and no price.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from freehold.base import private
from freehold.base.errors import BudgetSpent, LedgerUnavailable, StoreError
from freehold.route.providers.contract import HOUSE
from freehold.route.router.gateway import SpendLimit
from freehold.route.router.ledger import rows as schema
from freehold.route.router.ledger.rows import (
    DAY_S,
    Intent,
    LedgerRow,
    Reservation,
    SpendWindow,
    first_id,
    usd,
    window,
)

_log = logging.getLogger("freehold.route.router")
LOCK_WAIT_S = 5.0  # for a file that another process holds, or a disk that is full
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05  # between two tries
TICK_S = 1.0  # rows that could not be written are tried again, and the disk's room is looked at
RECOVER_S = 20.0  # reservations of dead processes are looked for: they come back within 60 s
# The log takes whole pages: of 2 kB a reservation with its row took 54 µs of CPU, of 4 kB 68, of 1 kB 55.
PAGE_BYTES = 2048
LOG_PAGES = 16_384  # what the write-ahead log may grow to before it is copied into the file
FREE_BYTES = 8 << 20  # below this room on the disk nothing is begun, so that what has begun can be booked
WRONG_ROW = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError)  # one that no retry makes right
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class Ledger:
    """An open ledger. Its methods belong to one event loop; `keep()` runs beside them while the server does."""

    def __init__(self, path: Path, db: sqlite3.Connection, owner: OwnerLock) -> None:
        self.path, self._db, self._owner = path, db, owner
        self._owed: dict[str, LedgerRow] = {}  # rows that could not be written yet
        self._trouble, self._hint = "", ""
        self._file = LedgerFile(path)
        self._pages = 0  # of the log, estimated
        self._copying: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open or make the file, and book what dead processes left. Raises LedgerUnavailable or StoreError."""
        try:
            private.folder(path.parent)
            private.file(path)
            owner = OwnerLock.make(path)
        except OSError as e:
            raise LedgerUnavailable(f"the ledger {path} cannot be written: {e.strerror}") from None
        try:
            db = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, cached_statements=64)
            try:
                _prepare(db, path)
                row = (owner.name, time.time(), os.getpid())
                db.execute("INSERT INTO owners (name, since, pid) VALUES (?, ?, ?)", row)
                recover(db, path, owner.name)
                db.execute("PRAGMA busy_timeout = 0")
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, StoreError) as e:
            owner.release(forget=True)
            if isinstance(e, StoreError):
                raise
            raise LedgerUnavailable(f"the ledger {path} cannot be used: {e}", _way_out(e)) from None
        return cls(path, db, owner)

    # --- money ----------------------------------------------------------------------------------

    async def reserve(self, wanted: Reservation) -> None:
        """Reserve money of a key's window for a row, in one statement.

        Raises BudgetSpent where it does not fit, LedgerUnavailable where it cannot be written.
        """
        if self._trouble:
            await self.ready()
        span = window(wanted.limit.per, wanted.at)
        values = (
            *(wanted.id, wanted.key, wanted.at, wanted.nano, self._owner.name, wanted.sent),
            *(_encode(wanted.about), span.start, span.stop, wanted.limit.nano),
        )
        if await self._write(lambda: self._run(schema.RESERVE, values)):
            return
        spent, reserved = await self._spent(wanted.key, span)
        # The window was not open, or room was made since.
        if spent + reserved + wanted.nano <= wanted.limit.nano:
            if await self._write(lambda: self._run(schema.RESERVE, values)):
                return
            spent, reserved = await self._spent(wanted.key, span)
        raise _no_money(wanted, span, spent, reserved)

    async def change(self, wanted: Reservation) -> None:
        """Set the amount of a reservation anew: less once the target is known, more where another attempt may cost.

        Raises BudgetSpent where more does not fit; what was reserved stays.
        """
        span = window(wanted.limit.per, wanted.at)
        values = (wanted.nano, wanted.id, span.start, span.stop, wanted.limit.nano)
        if not await self._write(lambda: self._run(schema.CHANGE, values)):
            raise _no_money(wanted, span, *await self._spent(wanted.key, span))

    async def sent(self, row_id: str) -> None:
        """Note that a provider may charge from now on, for a row that was reserved with `sent` False."""
        await self._write(lambda: self._run(schema.SENT, (row_id,)))

    async def spent(self, key: str, limit: SpendLimit, at: float) -> tuple[int, int]:
        """Return nano-dollars (spent, reserved) of a key's window."""
        return await self._spent(key, window(limit.per, at))

    # --- rows -----------------------------------------------------------------------------------

    async def book(self, row: LedgerRow) -> None:
        """Commit a row and settle its reservation, once, however often it is called.

        Returns when the row is in the file. Raises LedgerUnavailable after LOCK_WAIT_S: the answer's end must not
        be handed on then; the row is written when that is possible again, as a broken answer.
        """
        values = schema.of_row(row)
        self._owed[row.id] = row  # also for a caller that is cancelled while it waits
        try:
            await self._write(lambda: self._run(schema.INSERT, values))
            if lost := self._file.lost():
                raise LedgerUnavailable(lost)
        except LedgerUnavailable:
            broken = replace(row, outcome="broken", finish_reason="") if row.outcome == "whole" else row
            self._owed[row.id] = broken
            raise
        except WRONG_ROW as e:  # what was set aside for it stays so until this process ends
            del self._owed[row.id]
            raise LedgerUnavailable(f"the ledger takes no such row: {e}") from None
        self._owed.pop(row.id, None)

    async def ready(self) -> None:
        """Raise LedgerUnavailable where a row could not be written now; no statement while all is well.

        Called before a request is sent for which nothing is reserved.
        """
        if not self._trouble:
            return
        try:  # once: there was time enough since the trouble began
            self._run("UPDATE owners SET since = since WHERE name = ?", (self._owner.name,))
            self._look_at_disk()
            trouble, hint = self._trouble, self._hint
        except sqlite3.OperationalError as e:
            trouble, hint = f"the ledger cannot be written: {e}", _way_out(e)
        if trouble:
            raise LedgerUnavailable(trouble, hint)

    @property
    def trouble(self) -> str:
        """Why rows cannot be written now; "" while they can."""
        return self._trouble

    @property
    def owed(self) -> int:
        """Rows that wait for the file."""
        return len(self._owed)

    # --- its life -------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Look after the file until cancelled: owed rows, room on the disk, reservations of the dead."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._look_at_disk()
                self._write_owed()
                if time.monotonic() - last >= RECOVER_S:
                    recover(self._db, self.path, self._owner.name)
                    last = time.monotonic()
            except (sqlite3.Error, OSError) as e:
                _log.debug("the ledger is looked after again in %g s: %s", TICK_S, e)

    async def close(self) -> None:
        """Write what is owed, as far as that is possible, and close the file."""
        if self._copying is not None:
            await self._copying
        deadline = time.monotonic() + LOCK_WAIT_S
        while self._owed and time.monotonic() < deadline:
            try:
                self._write_owed()
            except sqlite3.Error:
                await asyncio.sleep(LONGEST_PAUSE_S)
        if self._owed:
            _log.error("the ledger %s lost %d rows: it could not be written", self.path, len(self._owed))
        left = True
        with suppress(sqlite3.Error):
            query = "DELETE FROM owners WHERE name = ?1 AND NOT EXISTS (SELECT 1 FROM reservations WHERE owner = ?1)"
            left = not self._run(query, (self._owner.name,))
        self._db.close()
        self._owner.release(forget=not left)

    # --- writing --------------------------------------------------------------------------------

    def _run(self, statement: str, values: tuple[object, ...]) -> int:
        """Run one statement, a transaction of its own; return how many rows it changed."""
        return self._db.execute(statement, values).rowcount

    async def _write(self, action: Callable[[], T]) -> T:
        """Do it now, or as soon as the file can be written."""
        try:
            done = action()
        except sqlite3.OperationalError as e:
            done = await self._patiently(action, e)
        self._pages += 8  # pages that a reservation or a row changes, about
        if self._pages > LOG_PAGES and self._copying is None:
            self._copying = asyncio.create_task(self._copy_log())
        return done

    async def _patiently(self, action: Callable[[], T], e: sqlite3.OperationalError) -> T:
        pause, deadline = FIRST_PAUSE_S, time.monotonic() + LOCK_WAIT_S
        while True:
            if not _passing(e):
                raise LedgerUnavailable(f"the ledger cannot be written: {e}", _way_out(e)) from None
            if not _busy(e):
                self._trouble = f"the ledger cannot be written: {e}"
            if time.monotonic() + pause > deadline:
                problem = f"the ledger could not be written for {LOCK_WAIT_S:g} s: {e}"
                raise LedgerUnavailable(problem, _way_out(e)) from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
            try:
                done = action()
            except sqlite3.OperationalError as again:
                e = again
                continue
            self._trouble = ""
            return done

    def _write_owed(self) -> None:
        for name, row in list(self._owed.items()):
            self._run(schema.INSERT, schema.of_row(row))
            self._owed.pop(name, None)

    def _look_at_disk(self) -> None:
        trouble, hint = self._file.trouble(FREE_BYTES)
        if trouble and not self._trouble:
            _log.error("%s; requests are refused", trouble)
        self._trouble, self._hint = trouble, hint

    async def _spent(self, key: str, span: SpendWindow) -> tuple[int, int]:
        """Return (spent, reserved) of a window; opens it where it is new."""
        find = (key, span.start, span.stop)
        row = self._db.execute(schema.SPENT, find).fetchone()
        if row is None:
            await asyncio.to_thread(_open_window, self.path, key, span)
            row = self._db.execute(schema.SPENT, find).fetchone()
        return row

    async def _copy_log(self) -> None:
        """Copy the log into the file, in a thread: most of it beside writers, the rest in a moment without any."""
        try:
            await asyncio.to_thread(_checkpoint, self.path)
            self._pages = 0
        except sqlite3.Error as e:
            _log.debug("the ledger's log is copied later: %s", e)
            self._pages = LOG_PAGES // 2
        finally:
            self._copying = None


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or check that they are ours."""
    db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file
    db.execute("PRAGMA journal_mode = WAL")
    for name in ("synchronous = NORMAL", "wal_autocheckpoint = 0", "recursive_triggers = OFF"):
        db.execute(f"PRAGMA {name}")
    with db:
        db.execute("BEGIN IMMEDIATE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _statements(schema.TABLES):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {schema.VERSION}")
        elif 0 < version < schema.SOUND_SINCE:
            db.execute(schema.ADD_SOUND)
            db.execute(f"PRAGMA user_version = {schema.VERSION}")
        elif version != schema.VERSION:
            raise StoreError(
                f"the ledger {path} has version {version}; this Freehold reads version {schema.VERSION}",
                "use the Freehold that wrote it, or name another file",
            )


def _statements(script: str) -> list[str]:
    statements, part = [], ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            statements.append(part)
            part = ""
    return statements


def _open_window(path: Path, key: str, span: SpendWindow) -> None:
    """Add up what a key's rows have spent in a window; writers of the loop wait for it without blocking."""
    with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)) as db:
        try:
            db.execute("PRAGMA wal_autocheckpoint = 0")
            db.execute("BEGIN IMMEDIATE")
            db.execute(schema.CLOSE_WINDOWS, (key, span.start - DAY_S))
            db.execute(schema.OPEN_WINDOW, (key, span.start, span.stop, first_id(span.start)))
            db.execute("COMMIT")
        except sqlite3.Error as e:
            raise LedgerUnavailable(f"the ledger {path} cannot be written: {e}", _way_out(e)) from None


def _checkpoint(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        db.execute("PRAGMA wal_checkpoint(RESTART)")


def _busy(e: sqlite3.Error) -> bool:
    return e.sqlite_errorcode & 0xFF in BUSY


def _passing(e: sqlite3.Error) -> bool:
    """Say whether it may go by itself: a lock, a full disk."""
    return _busy(e) or e.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _way_out(e: sqlite3.Error) -> str:
    if _busy(e):
        return "another process holds the file; end it, or try again"
    return "free space on its disk" if _passing(e) else ""


def _no_money(wanted: Reservation, span: SpendWindow, spent: int, reserved: int) -> BudgetSpent:
    limit = wanted.limit
    held = f", {usd(reserved)} reserved for requests in flight" if reserved else ""
    message = (
        f"the budget of key {wanted.key} is {usd(limit.nano)} a {limit.per}: {usd(spent)} spent{held}, and this "
        f"request may cost {usd(wanted.nano)}"
    )
    hint = f"it renews at {span.words()}; a smaller max_tokens may fit"
    money = {"spent": spent, "reserved": reserved, "asked": wanted.nano, "limit": limit.nano}
    return BudgetSpent(message, hint, span.stop - wanted.at, **money)


# --- whether a ledger's file is still the one that was opened, and whether its disk has room --------
# An open file can be deleted or replaced under its name: what is written then is in no file that anyone will
# read.


class LedgerFile:
    """The file as it is when the ledger is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = os.stat(path)

    def trouble(self, least: int) -> tuple[str, str]:
        """Return why nothing may be written now, and the way out; "" where nothing is wrong. `least`: free bytes."""
        if lost := self.lost():
            return lost, "put it back, or start the server again"
        disk = os.statvfs(self._path)
        free = disk.f_bavail * disk.f_frsize
        if free < least:
            return (
                f"the ledger's disk has {free:,} bytes left, {least:,} are needed",
                "free space on its disk",
            )
        return "", ""

    def lost(self) -> str:
        """Return what happened to the file under its name; "" while it is the one that was opened."""
        try:
            status = os.stat(self._path)
        except OSError as e:
            return self._sentence(f"is gone ({e.strerror})")
        if not os.path.samestat(status, self._opened):
            return self._sentence("was replaced by another")
        return "" if status.st_size else self._sentence("was emptied")

    def _sentence(self, what: str) -> str:
        return f"the ledger {self._path} {what} while the server runs"


# --- books what dead processes left: a row "lost" for each reservation ------------------------------
# The provider may have answered, and charged, after the process was gone: the row costs what was reserved,
# marked `estimated`, so that a key's budget stays above the provider's sum. A request that had not been sent
# costs nothing.

_intent = msgspec.json.Decoder(Intent).decode


def recover(db: sqlite3.Connection, path: Path, own: str) -> int:
    """Book what dead owners left; return how many rows that made. `own`: this process's owner name."""
    count = 0
    known = {name for (name,) in db.execute("SELECT name FROM owners")}
    for name in sorted((known | owner_names(path)) - {own}):
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
    """Return the row of a request whose end is not known; one that reached no provider is known to cost nothing."""
    charged = nano > 0
    return LedgerRow(
        **about.values(),
        id=name,
        at=at,
        key=key,
        owned=about.place == HOUSE,
        nano=nano,
        estimated=charged,
        left_house=charged,
        outcome="lost",
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
            path = _owner_path(ledger, name)
            fd = private.opener(str(path), os.O_RDWR | os.O_CREAT)
            if _locked(fd) and _is_still(path, fd):
                return cls(path, name, fd)
            os.close(fd)  # a process that looks for the dead took it for one's, between the two calls

    @classmethod
    def of_the_dead(cls, ledger: Path, name: str) -> OwnerLock | None:
        """Take the lock of the owner `name` and return it; None while that process lives."""
        path = _owner_path(ledger, name)
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


def owner_names(ledger: Path) -> set[str]:
    """Return the owners that have a file; one that was killed as it began is in no table."""
    start = f"{ledger.name}-owner-"
    return {path.name.removeprefix(start) for path in ledger.parent.glob(f"{start}*")}


def _owner_path(ledger: Path, name: str) -> Path:
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
