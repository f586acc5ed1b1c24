"""Disk space: refuse before a download that cannot fit, and name a full disk when it fills midway."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freehold.base.errors import CapacityExceeded, StoreError

RESERVE = 256 << 20  # bytes of a disk that no upload takes: what the server itself writes needs them,
RESERVED_SHARE = 20  # or this part of a small disk
MARGIN = 0.05  # of the bytes still to come: file system overhead, and a disk left usable


def require(folder: Path, wanted: int, what: str) -> None:
    """Raise CapacityExceeded unless `folder`'s disk has room for `wanted` bytes and 5 % more."""
    free = shutil.disk_usage(folder).free
    need = int(wanted * (1 + MARGIN))
    if need > free:
        raise CapacityExceeded(
            f"{what} needs {human(need)} of disk, {folder} has {human(free)} free",
            "free space (freehold list, freehold rm), or set FREEHOLD_HOME to a larger disk",
        )


def left_for_uploads(folder: Path) -> int:
    """Return the bytes of `folder`'s disk that clients may still fill; below 0 where its reserve is touched already."""
    usage = shutil.disk_usage(folder)
    return usage.free - min(RESERVE, usage.total // RESERVED_SHARE)


@contextmanager
def full_disk(folder: Path, kept: str) -> Iterator[None]:
    """Turn a full disk, a quota, a limit of files' length or an unwritable folder into a named error.

    `kept` says what survives.
    """
    try:
        yield
    except OSError as e:
        if e.errno == errno.EFBIG:
            raise CapacityExceeded(
                f"a file below {folder} may not become that long ({e.strerror}); {kept}",
                "the limit is this process's (ulimit -f) or the disk's: raise it, or set FREEHOLD_HOME to another disk",
            ) from e
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityExceeded(
                f"the disk of {folder} is full ({e.strerror}); {kept}",
                "free space (freehold list, freehold rm), then run the same command: it continues from there",
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
            raise StoreError(f"{e.filename or folder} cannot be written: {e.strerror}") from e
        raise


def human(n: float) -> str:
    """Write a byte count for people: 12.4 GB (powers of 1000, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
