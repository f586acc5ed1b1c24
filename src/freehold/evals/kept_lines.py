"""A file of JSON lines that grows by one line at a time, so that a run that was stopped continues.

Each line is on its way to the disk when `write` returns: Ctrl-C and a kill lose none, and one that was cut short
counts as not there. The file is readable by its owner alone. Knows lines; knows no case and no answer.
Path: trial.run, evaluate -> AppendedLines, kept_rows
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from freehold.errors import StoreError

MOST_KEPT = 64 << 20  # bytes of one file of answers
Write = Callable[[Mapping[str, Any]], None]


class AppendedLines:
    """Append rows to a file; a new file gets `head` as its first row."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path, self._head = path, head

    def __enter__(self) -> Write:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = os.fdopen(opened, "a+b", buffering=0)
            size = self._file.seek(0, os.SEEK_END)
            if not size:
                self._write(self._head)
            elif self._last_byte(size) != b"\n":  # the line before was cut short
                self._file.write(b"\n")
        except OSError as e:
            raise StoreError(f"{self._path} cannot be written: {e.strerror}", "free some space") from e
        return self._write

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _last_byte(self, size: int) -> bytes:
        self._file.seek(size - 1)
        return self._file.read(1) or b""

    def _write(self, row: Mapping[str, Any]) -> None:
        line = memoryview((json.dumps(row, ensure_ascii=True) + "\n").encode())
        try:
            while line:  # a disk that fills takes a part and raises at the next
                line = line[self._file.write(line) or 0 :]
        except OSError as e:
            raise StoreError(f"{self._path} cannot be written: {e.strerror}", "free some space") from e


def kept_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, none where there is no file; damaged lines are left out.

    Raises StoreError for a file that cannot be read or has grown too large.
    """
    try:
        if path.stat().st_size > MOST_KEPT:
            raise StoreError(f"{path} is over {MOST_KEPT:,} bytes", "delete it; the cases are answered again")
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e.strerror}", "check its permissions") from e
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row
