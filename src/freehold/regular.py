"""Opens plain files alone, in folders that another account may write: a pipe or a device would hold a reader for ever.

A look at a path before it is opened says nothing of what is opened: between the two it may have become a pipe, or a
link to one. So it is opened without waiting, and what is open is looked at. Knows one file at a time.
Path: tokenizer/directory, store/foreign, chats/folder, backends/planning/facts -> open_regular, read_regular
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


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
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return data
