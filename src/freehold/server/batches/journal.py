"""The results of a batch: two files, which are also the only record of its progress.

A line is done once its result is on the disk, and never otherwise, so a server that was killed continues at the first
line without a result; half a line that it left is cut off. Results that come together share one flush; those that a
full disk refuses wait in memory until it takes them.
Knows files and custom ids; knows no model. Path: Desk -> Journal.open -> Journal.add
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from freehold.server.batches.filestore import sync_file
from freehold.server.core.problems import Refused

PAUSE_S = 5.0  # until a disk that took no result is tried again
OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"


class _Done(Struct):
    custom_id: str


class Journal:
    """Open files in `folder`. `done`: the custom ids that have a result."""

    def __init__(
        self,
        folder: Path,
        reported: Callable[[OSError | None], None] = lambda _: None,
        reserve: Callable[[int], None] = lambda _: None,
        wrote: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Read what is there; blocks, so call it in a thread.

        `reported` is called with the error of a failing disk, and with None once it works again. `reserve` is called,
        in a thread, with the bytes that are about to be written, and `wrote` once they are; Refused of the first ends
        the journal: no result is written any more.
        """
        self.counts = {OUTPUT: 0, ERRORS: 0}
        self.done: set[str] = set()
        self._files = {name: self._opened(folder / name) for name in self.counts}
        self._ends = {name: file.tell() for name, file in self._files.items()}
        self._waiting: list[tuple[str, str, Callable[[], object]]] = []
        self._lock, self._closing = asyncio.Lock(), asyncio.Event()
        self._reported, self._reserve, self._wrote = reported, reserve, wrote
        self._over: Refused | None = None

    async def add(self, custom_id: str, result: Callable[[], object], *, failed: bool) -> None:
        """Write a line's result, which is made and encoded in a thread; returns once it is on the disk.

        Raises Refused where there is no room for it.
        """
        self._waiting.append((ERRORS if failed else OUTPUT, custom_id, result))
        # Shielded: a flush that began is finished even if its caller is cancelled.
        await asyncio.shield(self._flush())
        if self._over is not None and custom_id not in self.done:
            raise self._over

    async def settle(self) -> None:
        """Write the results whose callers were cancelled, so that `done` is complete."""
        await asyncio.shield(self._flush())

    async def close(self) -> None:
        """Settle if the disk takes it, and close both files. Raises OSError if it does not."""
        self._closing.set()
        try:
            await self.settle()
        finally:
            for file in self._files.values():
                file.close()

    async def _flush(self) -> None:
        async with self._lock:
            while self._waiting and self._over is None:
                try:
                    await asyncio.to_thread(self._write)
                except OSError as e:
                    self._reported(e)
                    if self._closing.is_set():
                        raise
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), PAUSE_S)
                else:
                    self._reported(None)

    def _write(self) -> None:
        """Write what waits, file by file; what a full disk took of it is taken back."""
        ready = list(self._waiting)
        for name in dict.fromkeys(name for name, _, _ in ready):
            lines: dict[str, bytes] = {}
            size = 0
            for _, id, result in (item for item in ready if item[0] == name):
                line = msgspec.json.encode(result()) + b"\n"
                try:
                    self._reserve(size + len(line))
                except Refused as e:
                    self._over = e
                    break
                lines[id] = line
                size += len(line)
            self._append(name, b"".join(lines.values()))
            self._wrote(size)
            self._waiting = [item for item in self._waiting if item[0] != name or item[1] not in lines]
            self.counts[name] += len(lines)
            self.done.update(lines)

    def _append(self, name: str, data: bytes) -> None:
        fd, end = self._files[name].fileno(), self._ends[name]
        view, at = memoryview(data), end
        try:
            while at < end + len(data):
                at += os.pwrite(fd, view[at - end :], at)
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, end)
            raise
        self._ends[name] = at

    def _opened(self, path: Path) -> BinaryIO:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        sync_file(path)
        file = os.fdopen(fd, "r+b")
        file.truncate(self._whole(file, path.name))
        file.seek(0, os.SEEK_END)
        return file

    def _whole(self, file: BinaryIO, name: str) -> int:
        """Take in every whole line; return where they end."""
        end = 0
        for raw in file:
            try:
                done = msgspec.json.decode(raw, type=_Done) if raw.endswith(b"\n") else None
            except (msgspec.DecodeError, UnicodeDecodeError):
                done = None
            if done is None:
                break
            self.done.add(done.custom_id)
            self.counts[name] += 1
            end += len(raw)
        return end
