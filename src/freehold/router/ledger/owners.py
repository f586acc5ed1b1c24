"""Which processes write to a ledger, and which of them are dead.

Each holds a lock on a file of its own beside the ledger; the kernel takes the lock away when the process ends,
however it ends, so that no number of a process is compared, and containers that share the folder see each other.
Knows no table.
Path: store.Ledger -> OwnerLock; recovery.py -> OwnerLock.of_the_dead
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from freehold import private


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
