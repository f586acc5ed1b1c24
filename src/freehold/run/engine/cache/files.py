"""A folder of cache files that survive a restart: bounded, written whole or not at all, and never trusted.

Knows bytes and files; knows no token and no picture. A file begins with a head that its reader could write itself,
then has a CRC-32 of its content and the content: whatever differs from that is a miss, and removed. Engines may share
a folder.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.base import private

U8 = NDArray[np.uint8]

PART = ".part"
FREE_SHARE = 10  # a folder takes one in this many of the free bytes at most
SLACK = 16  # the part of the budget that is written between two scans of the folder, and kept free for that
STALE_S = 3600.0  # age at which an unfinished file is removed


class CheckedFolder:
    """Files with one of `suffixes` in a folder, `budget` bytes of them at most, or less where little is free."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...], most: int, budget: int | None = None) -> None:
        """`budget` None: `most`, or one in FREE_SHARE of the free bytes, whatever is less."""
        self.path = folder
        self._suffixes, self._most, self._budget = suffixes, most, budget
        self._unseen = 1 << 62  # bytes written since the folder was last scanned

    def fill(self, content: U8, name: str, head: bytes, used: int) -> bool:
        """Read a file that begins with `head`; False, and the file removed, if anything is not as expected.

        `used`: when it was used, in nanoseconds: what was unused for longest goes first.
        """
        path = self.path / name
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _sound(fd, head, content):
                    os.utime(fd, ns=(used, used))
                    return True
                path.unlink(missing_ok=True)
            finally:
                os.close(fd)
        return False

    def has(self, name: str) -> bool:
        """Return whether a file is there, whatever it holds."""
        return os.path.exists(self.path / name)

    def write(self, name: str, head: bytes, content: U8, used: int) -> None:
        """Write a file beside its place and put it there whole; older ones make room. Raises OSError."""
        private.folder(self.path)
        self._make_room(len(head) + 4 + content.nbytes)
        path = self.path / name
        part = path.with_suffix(f".{os.getpid()}{PART}")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(head + zlib.crc32(content.data).to_bytes(4))
                file.write(content.data)
                file.flush()
                os.utime(fd, ns=(used, used))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove what was unused for longest once the budget is used up; the folder is scanned now and then only."""
        self._unseen += size
        if self._budget is not None and self._unseen < self._budget // SLACK:  # others may write too
            return
        files = [(e.stat().st_mtime_ns, e.stat().st_size, e.path) for e in self._entries()]
        held = sum(size for _, size, _ in files)
        if self._budget is None:
            self._budget = min(self._most, (shutil.disk_usage(self.path).free + held) // FREE_SHARE)
        for _, bytes_, path in sorted(files):
            if held <= self._budget - self._budget // SLACK:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            held -= bytes_
        self._unseen = size

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """Yield the folder's files; remove what a process left that died while writing."""
        now = time.time()
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.name.endswith(self._suffixes):
                        yield entry
                    elif entry.name.endswith(PART) and entry.stat().st_mtime < now - STALE_S:
                        os.unlink(entry.path)


def _sound(fd: int, head: bytes, content: U8) -> bool:
    """Read a file into `content`; tell whether it is what was once written."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size != len(head) + 4 + len(content):
        return False
    begin = bytearray(len(head) + 4)
    if os.readv(fd, [begin, content.data]) != facts.st_size or begin[: len(head)] != head:
        return False
    return zlib.crc32(content.data) == int.from_bytes(begin[len(head) :])
