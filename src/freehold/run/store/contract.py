"""The contract of a source: answer a reference with a plan, then fetch the plan into a folder.

Sources: hub.py (Hugging Face hub), index.py (package index), http.py (an address). Only `Store` calls them.
A fetch may die at any byte; the next one with the same plan and folder continues where it stopped.

A half-fetched file is `NAME.part`, and beside it `NAME.part.json`, the record of finished ranges. The record is written
after its range is on the disk, so the bytes that it counts survive a kill at any byte and a power cut.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from freehold.base import private
from freehold.run.store.manifest import HeldFile, sync_folder, write_json

# --- a half-fetched file ---------------------------------------------------------------------------

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


# --- sources ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to fetch. `name` is relative to the model's folder; None: the source does not tell."""

    name: str
    bytes: int | None
    sha256: str | None
    url: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a source would fetch for a reference. `name` is the model's canonical name."""

    name: str
    kind: str  # as of a manifest
    source: str  # for the manifest and for `show`
    files: tuple[PlannedFile, ...]
    licence: str = ""
    detail: str = ""
    eyes: str = ""  # which of the files is the tower beside a GGUF; empty: none
    eyes_left_out: bool = False

    @property
    def bytes(self) -> int:
        """Sum of the known sizes."""
        return sum(f.bytes or 0 for f in self.files)

    def without_eyes(self) -> Plan:
        """Return the plan of the model alone."""
        files = tuple(f for f in self.files if f.name != self.eyes)
        return replace(self, files=files, eyes="", eyes_left_out=self.kind == "gguf")

    def eyes_alone(self) -> Plan:
        """Return the plan of the tower's file alone."""
        return replace(self, files=tuple(f for f in self.files if f.name == self.eyes))


class WeightSource(Protocol):
    """Somewhere weights can be had."""

    def plan(self) -> Plan:
        """Ask the source what the reference means. Raises ModelNotFound, AccessDenied, DownloadFailed."""
        ...

    def fetch(self, plan: Plan, folder: Path, on_event: OnEvent) -> tuple[HeldFile, ...]:
        """Bring the plan's files into `folder`, whole and checked.

        Raises DownloadFailed, CapacityExceeded, Offline.
        """
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


def held_bytes(plan: Plan, folder: Path) -> int:
    """Count what earlier runs left in `folder`: finished files and the parts' recorded bytes."""

    total = 0
    for file in plan.files:
        whole = folder / file.name
        total += whole.stat().st_size if whole.is_file() else recorded_bytes(whole)
    return total


# --- the events of a pull: its callback receives these, in order ------------------------------------


@dataclass(frozen=True, slots=True)
class Planned:
    """The source answered: what will be fetched. `detail` says what was chosen, and why."""

    name: str
    source: str
    detail: str
    files: int
    total: int  # bytes; 0 when the source does not tell
    held: int  # bytes an earlier run already fetched


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes on disk so far, over all files of the model; `total` 0 when unknown, `sha256` of the file "" then."""

    name: str
    file: str
    done: int
    total: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a user should know: a retry, a restart, a wait for another process."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The model is ready. `fetched` counts the bytes this run brought in; 0 when the model was there already."""

    name: str
    path: str
    bytes: int
    fetched: int
    seconds: float


Event = Planned | Progress | Note | Finished
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Drop every event."""
