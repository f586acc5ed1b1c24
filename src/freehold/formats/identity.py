"""Names the files of a model whose digest is not known, so that what is kept of them is found again.

Knows files on disk; reads nothing of them.
Path: Store.remove, local/opening -> file_identity, file_facts
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

RACY_S = 2.0  # the coarsest clock of a file system in use (FAT)


def file_identity(paths: Iterable[Path], before: float) -> str:
    """Name files without a known digest by device, inode, size and times of change; "" if that could be wrong.

    Any write, rename or replacement moves the time of change (ctime), which no program can set back. What is not
    seen: other bytes written within the clock's grain of an old write. So files that changed less than
    RACY_S before `before`, the time at which reading them began, have no identity yet and are packed at each load.
    """
    stats = [path.stat() for path in paths]
    racy = any(max(info.st_mtime, info.st_ctime) > before - RACY_S for info in stats)
    return "" if racy else _identity(stats)


def file_facts(paths: Iterable[Path]) -> str:
    """Name files as file_identity does, however new they are: for a word on what was loaded, not for a pack."""
    return _identity([path.stat() for path in paths])


def _identity(stats: Iterable[os.stat_result]) -> str:
    facts = [(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) for info in stats]
    return hashlib.sha256(f"freehold file identity {facts}".encode()).hexdigest()
