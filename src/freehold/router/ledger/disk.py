"""Whether a ledger's file is still the one that was opened, and whether its disk has room.

An open file can be deleted or replaced under its name: what is written then is in no file that anyone will read.
Knows the file and its disk; knows no table. Path: store.Ledger -> LedgerFile.trouble
"""

from __future__ import annotations

import os
from pathlib import Path


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
            return f"the ledger's disk has {free:,} bytes left, {least:,} are needed", "make room on its disk"
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
