"""Reads files by path, never without a bound: a pipe or a device has no size, and may have no end.

In folders that another account may write, and where a server's client names the path, plain files alone are opened.

A look at a path before it is opened says nothing of what is opened: between the two it may have become a pipe, or a
link to one. So it is opened without waiting, and what is open is looked at. Knows one file at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TextIO

_PIECE = 1 << 20


def open_regular(path: Path | str) -> BufferedReader:
    """Open a plain file to read, through links. Raises OSError, with EINVAL for anything else than a plain file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return os.fdopen(fd, "rb")


def read_regular(path: Path | str, most: int) -> bytes:
    """Return what a plain file of at most `most` bytes holds. Raises as `open_regular`, EFBIG for a longer one."""
    with open_regular(path) as file:
        return _read(file, most, path)


def read_bounded(path: Path | str, most: int) -> bytes:
    """Return what a file, pipe or device of at most `most` bytes holds. Raises OSError, EFBIG for a longer one."""
    with open(path, "rb") as file:
        return _read(file, most, path)


def bounded_lines(file: TextIO, most: int) -> Iterator[str]:
    """Yield lines of at most `most` characters. Raises OSError, EFBIG for a longer one, as a device has."""
    while line := file.readline(most + 1):
        if len(line) > most:
            raise OSError(errno.EFBIG, f"a line has more than {most:,} characters")
        yield line


def _read(file: BufferedReader, most: int, path: Path | str) -> bytes:
    parts: list[bytes] = []  # memory for `most` is not taken at once
    left = most + 1
    while left and (data := file.read(min(left, _PIECE))):
        parts.append(data)
        left -= len(data)
    if not left:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return b"".join(parts)
