"""A half-fetched file on disk: `NAME.part` and beside it `NAME.part.json`, the record of finished ranges.

The record is written after its range is on the disk, so the bytes that it counts survive a kill at any byte and
a power cut. Knows no network.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from freehold.base import private
from freehold.run.store.manifest import sync_folder, write_json

_READ = 1 << 20


def state_path(target: Path) -> Path:
    """Return where the record of `target`'s finished ranges lies."""
    return target.with_name(f"{target.name}.part.json")


def part_path(target: Path) -> Path:
    """Return where `target`'s bytes lie until they are whole."""
    return target.with_name(f"{target.name}.part")


def recorded_bytes(target: Path) -> int:
    """Count the bytes of `target`'s part that its record counts; 0 without either."""
    try:
        held = int(json.loads(state_path(target).read_bytes())["bytes"])
        return held if 0 <= held <= part_path(target).stat().st_size else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def discard(target: Path) -> None:
    """Delete `target`'s part and its record."""
    part_path(target).unlink(missing_ok=True)
    state_path(target).unlink(missing_ok=True)


class Part:
    """The part of one file of `size` bytes, cut into ranges of `unit`.

    `etag` names the version at the source: a part of another version is thrown away, and `restarted`
    says so. An empty `etag` never resumes. Safe from many threads.
    """

    def __init__(self, target: Path, size: int, unit: int, etag: str) -> None:
        self.target, self.size, self.unit, self.etag = target, size, unit, etag
        self.count = -(-size // unit)
        self._lock = threading.Lock()
        self._users = 1
        self.restarted = False
        self.done = self._resume()
        private.folder(target.parent)
        mode = "r+b" if any(self.done) else "w+b"
        self._file = private.file(part_path(target)).open(mode, buffering=0)
        self._file.truncate(size)

    def bounds(self, i: int) -> tuple[int, int]:
        """Return the half-open byte range of range `i`."""
        return i * self.unit, min((i + 1) * self.unit, self.size)

    def held(self) -> int:
        """Count the bytes of finished ranges."""
        return sum(b - a for i, ok in enumerate(self.done) if ok for a, b in [self.bounds(i)])

    def missing(self) -> list[int]:
        """List the ranges still to fetch, in order."""
        return [i for i, ok in enumerate(self.done) if not ok]

    def write(self, at: int, block: bytes) -> None:
        """Put bytes at an offset; they count only once their range is committed."""
        with self._lock:
            self._file.seek(at)
            view = memoryview(block)
            while view:
                view = view[self._file.write(view) :]

    def commit(self, i: int) -> None:
        """Record range `i` as finished, after its bytes reached the disk."""
        _flush(self._file.fileno())
        with self._lock:
            self.done[i] = True
            bits = sum(1 << j for j, ok in enumerate(self.done) if ok)
            record = {
                "etag": self.etag,
                "size": self.size,
                "unit": self.unit,
                "bytes": self.held(),
                "done": f"{bits:x}",
            }
            write_json(state_path(self.target), record)

    def read(self, i: int) -> Iterator[bytes]:
        """Yield the bytes of range `i` from the disk."""
        at, end = self.bounds(i)
        while at < end:
            with self._lock:
                self._file.seek(at)
                block = self._file.read(min(_READ, end - at))
            if not block:
                raise OSError(f"{part_path(self.target)} ends at byte {at}")
            at += len(block)
            yield block

    def share(self) -> None:
        """Count one more user of the open file."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Drop one user; the last one closes the file."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._file.close()

    def finish(self) -> None:
        """Move the whole file to its name, durably."""
        _flush(self._file.fileno())
        os.replace(part_path(self.target), self.target)
        state_path(self.target).unlink(missing_ok=True)
        sync_folder(self.target.parent)

    def _resume(self) -> list[bool]:
        """Read the record; start afresh if it is absent, damaged, or of another version or cut."""
        fresh = [False] * self.count
        try:
            record = json.loads(state_path(self.target).read_bytes())
            bits = int(record["done"], 16)
            same = (record["etag"], record["size"], record["unit"]) == (self.etag, self.size, self.unit)
            whole = part_path(self.target).stat().st_size == self.size
        except (OSError, ValueError, KeyError, TypeError):
            return fresh
        if not (same and whole and self.etag and bits >> self.count == 0 and bits >= 0):
            self.restarted = bits > 0
            discard(self.target)
            return fresh
        return [bool(bits >> i & 1) for i in range(self.count)]


def _flush(fd: int) -> None:
    getattr(os, "fdatasync", os.fsync)(fd)
