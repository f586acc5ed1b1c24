"""What is done of a batch: its two result files, which are also the only record of progress.

A line is done once its result is on the disk, and never otherwise, so a server that was killed goes on at the first
line without a result; half a line that it left is cut off. Results that come together share one flush.
Knows files and custom ids; knows no model. Path: Desk -> Journal.open -> Journal.add
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from freehold.server.openai.filestore import sync_file

OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"


class _Done(Struct):
    custom_id: str


class Journal:
    """Open files in `folder`. `done`: the custom ids that have a result."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; blocks, so call it in a thread."""
        self.counts = {OUTPUT: 0, ERRORS: 0}
        self.done: set[str] = set()
        self._files = {name: self._opened(folder / name) for name in self.counts}
        self._waiting: list[tuple[str, str, bytes]] = []
        self._lock = asyncio.Lock()

    async def add(self, custom_id: str, result: dict[str, object], *, failed: bool) -> None:
        """Note a line's result; returns when it is on the disk."""
        encoded = msgspec.json.encode(result) + b"\n"
        self._waiting.append((ERRORS if failed else OUTPUT, custom_id, encoded))
        # Shielded: a flush that began is finished, whatever becomes of who waits for it.
        await asyncio.shield(self._flush())

    async def settle(self) -> None:
        """Bring to the disk what nobody waits for any more, so that `done` is all there is."""
        await asyncio.shield(self._flush())

    async def close(self) -> None:
        """Settle, and close both files."""
        await self.settle()
        for file in self._files.values():
            file.close()

    async def _flush(self) -> None:
        async with self._lock:
            ready, self._waiting = self._waiting, []
            if ready:
                await asyncio.to_thread(self._write, ready)

    def _write(self, ready: list[tuple[str, str, bytes]]) -> None:
        for name in {name for name, _, _ in ready}:
            file = self._files[name]
            file.write(b"".join(data for to, _, data in ready if to == name))
            file.flush()
            os.fsync(file.fileno())
        for name, custom_id, _ in ready:
            self.counts[name] += 1
            self.done.add(custom_id)

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
