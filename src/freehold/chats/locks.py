"""Locks of a chat: one for the moment of an append, one for as long as an answer is written.

Both are the kernel's (flock), which ends them with their holder however that ends, so there is nothing stale to find.
Knows open files; knows no line. Path: ChatWriter -> appending; ChatFolder.read -> is_held
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from freehold import private
from freehold.errors import StoreError

WAIT_S = 10.0  # an append takes well under a millisecond, and a flush of a busy disk a second or two
_LOOK_S = 0.005


@contextmanager
def appending(fd: int, what: str) -> Iterator[None]:
    """Hold the lock of an open file; StoreError where another program holds it for WAIT_S."""
    until = time.monotonic() + WAIT_S
    while not _taken(fd, fcntl.LOCK_EX):
        if time.monotonic() > until:
            raise StoreError(
                f"{what} is locked by another program for {WAIT_S:g} seconds",
                "end that program if it is stopped, then try again",
            )
        time.sleep(_LOOK_S)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def held(path: Path) -> int:
    """Make the file `path` and hold it until `release`; return its descriptor. Raises OSError."""
    private.folder(path.parent)
    fd = private.opener(str(path), os.O_RDWR | os.O_CREAT)
    if not _taken(fd, fcntl.LOCK_EX):
        os.close(fd)
        raise OSError(errno.EAGAIN, "locked by another program", str(path))
    return fd


def release(fd: int, path: Path) -> None:
    """End what `held` began."""
    with suppress(OSError):
        path.unlink()
    os.close(fd)


def is_held(path: Path) -> bool:
    """Return whether a living program holds `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        if not _taken(fd, fcntl.LOCK_SH):  # shared: other readers may look at once
            return True
        with suppress(OSError):
            path.unlink()  # its holder died
        return False
    finally:
        os.close(fd)


def _taken(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
