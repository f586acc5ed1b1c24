"""Makes folders and files that only their user can read, whatever the umask.

The data home contains what was asked and answered: sessions, cached prompts, accounts, keys. What is there
already is closed when it is next written to. Knows modes; knows no folder of ours.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
_OTHERS = 0o077


def folder(path: Path, home: Path | None = None) -> Path:
    """Make `path` and what is missing above it; close it to others, and all that is between it and `home`."""
    missing = [path, *path.parents]
    for each in reversed([p for p in missing if not p.is_dir()]):
        each.mkdir(FOLDER, exist_ok=True)
        _close(each, FOLDER)  # a mode given to mkdir loses what the umask has, never gains
    for each in (p for p in missing if p == path or home in (p, *p.parents)):
        _close(each, FOLDER)
    return path


def opener(path: str, flags: int) -> int:
    """Open a file for `open(..., opener=opener)`: made for its user alone, and closed to others if it was there."""
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), FILE)
    if flags & (os.O_WRONLY | os.O_RDWR):
        _close(fd, FILE)
    return fd


def file(path: Path) -> Path:
    """Make `path` where there is none, for what opens it by itself (a lock, a database), and close it to others."""
    with suppress(OSError):  # what opens it will say why it cannot
        os.close(opener(str(path), os.O_RDWR | os.O_CREAT))
    return path


def _close(what: Path | int, mode: int) -> None:
    """Take the rights of others away, where what is there is ours; a disk without modes has none to take."""
    with suppress(OSError):
        status = os.stat(what)
        if status.st_mode & _OTHERS and status.st_uid == os.geteuid():
            os.chmod(what, mode)
