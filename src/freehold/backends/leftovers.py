"""Shared memory that one tree of processes made, and its removal when the tree has ended.

An engine that is killed leaves some hundred megabytes of it: no process remains that would unlink the names. A name is
taken for ours only if a process of our tree was seen to map it, it was not there before the start, and nobody maps it
any more; a name alone, whatever it begins with, is no proof. Knows nothing where shared memory has no names on a disk.
Path: supervisor -> SharedMemoryWatch.look, remove
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from freehold import platforms


class SharedMemoryWatch:
    """What a tree that is about to start will have made."""

    def __init__(self) -> None:
        self._before = self._listed = platforms.shared_memory()
        self._ours: set[str] = set()

    def look(self, tree: Callable[[], Iterable[int]], *, again: bool = False) -> None:
        """Note what the tree maps, if a name is new since the last look: reading maps costs milliseconds."""
        listed = platforms.shared_memory()
        new = listed - self._before
        if listed - self._listed or (again and new):
            for pid in tree():
                self._ours |= platforms.shared_memory_of(pid) & new
        self._listed = listed

    def remove(self) -> int:
        """Remove what is left of ours once the tree has ended; return how many names."""
        left = [path for path in self._ours & platforms.shared_memory() if _owned(path)]
        if not left:
            return 0
        in_use = {path for pid in psutil.pids() for path in platforms.shared_memory_of(pid)}
        removed = 0
        for path in left:
            if path not in in_use:
                with suppress(OSError):
                    os.unlink(path)
                    removed += 1
        return removed


def _owned(path: str) -> bool:
    with suppress(OSError):
        return os.stat(path).st_uid == os.geteuid()
    return False
