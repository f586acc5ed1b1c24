"""Shared memory that one tree of processes made, and its removal when the tree has ended.

An engine that is killed leaves some hundred megabytes of it: no process remains that would unlink the names. It is
taken for ours only if a process of our tree was seen to map it, it was not there before the start, and no process maps
it any more; a name alone proves nothing, whatever it begins with. Knows nothing where shared memory has no names on a
disk.
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
        self._before = frozenset(platforms.shared_memory().values())
        self._listed = self._before
        self._ours: set[int] = set()

    def look(self, tree: Callable[[], Iterable[int]], *, again: bool = False) -> None:
        """Note what the tree maps, if a name is new since the last look: reading maps costs milliseconds."""
        listed = frozenset(platforms.shared_memory().values())
        if listed - self._listed or (again and listed - self._before):
            for pid in tree():
                self._ours |= platforms.shared_memory_of(pid) - self._before
        self._listed = listed

    def remove(self) -> int:
        """Remove what is left of ours once the tree has ended; return how many names."""
        left = {path: n for path, n in platforms.shared_memory().items() if n in self._ours and _owned(path)}
        if not left:
            return 0
        in_use = {number for pid in psutil.pids() for number in platforms.shared_memory_of(pid)}
        removed = 0
        for path, number in left.items():
            if number not in in_use:
                with suppress(OSError):
                    os.unlink(path)
                    removed += 1
        return removed


def _owned(path: str) -> bool:
    with suppress(OSError):
        return os.stat(path).st_uid == os.geteuid()
    return False
