"""A process and all that descends from it: who they are, what they use, and the end of all of them.

Knows process ids; knows no engine. Ids are used again by the system, so a process is known by its id and its start.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a tree of processes uses."""

    cpu_s: float
    memory_bytes: int


def descendants(pid: int) -> list[psutil.Process]:
    """Return every process below `pid`, without it; none if it has ended."""
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def usage(processes: Iterable[psutil.Process]) -> TreeUsage:
    """Add up processor seconds and resident memory; memory that all share is counted once, as the largest share."""
    cpu, own, shared = 0.0, 0, 0
    for process in processes:
        with suppress(psutil.Error):
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
            cpu += times.user + times.system + times.children_user + times.children_system
            common = min(memory.rss, getattr(memory, "shared", 0))
            own, shared = own + memory.rss - common, max(shared, common)
    return TreeUsage(cpu, own + shared)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Send each SIGKILL, if it still is the process that was seen."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def end_all(pid: int, most_s: float) -> tuple[list[int], dict[int, int]]:
    """End every process below `pid`, which is the caller; return ids of those that remain, and statuses taken.

    A process that starts others while it is being ended is met by the next round. One that the kernel holds in a call
    to a disk or a device may stay: after `most_s` it is reported.
    """
    until, taken = time.monotonic() + most_s, reap()
    while left := _alive(pid):
        kill(left)
        taken |= reap()
        if time.monotonic() > until:
            return [process.pid for process in left], taken
        time.sleep(_LOOK_S)
    return [], taken | reap()


def reap() -> dict[int, int]:
    """Take the status of every child that has ended: id -> status as `os.waitpid` gives it."""
    taken: dict[int, int] = {}
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            taken[ended[0]] = ended[1]
    return taken


def end_group(group: int) -> None:
    """Send SIGKILL to a process group, if there still is one."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _alive(pid: int) -> list[psutil.Process]:
    left = []
    for process in descendants(pid):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left
