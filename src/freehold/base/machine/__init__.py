"""Free memory and usable processors of this process, by the machine and its control group.

Knows this process's affinity and quota and what others compute; the machine's own facts are in machine.processor and
machine.memory. Knows no model.
Path: loader (may the weights be packed?), engine.capacity (how long a context fits?), advisor -> available_bytes
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import psutil

from freehold.base.machine.memory import (
    CGROUP,
    available_bytes,
    cgroup_available_bytes,
    cgroup_limit_bytes,
    memory_kills,
)
from freehold.base.machine.processor import processor, usable_cores
from freehold.base.platforms import allowed_processors

__all__ = [
    "CROWDED",
    "Crowd",
    "available_bytes",
    "cgroup_available_bytes",
    "cgroup_limit_bytes",
    "cpu_name",
    "cpu_quota",
    "default_threads",
    "memory_kills",
    "processor",
    "resident_bytes",
    "show_bytes",
    "usable_cores",
]

CROWDED = 0.25  # with this share of our cores used by other processes, a timing measures those


class Crowd:
    """What other processes took of the processors since this was made."""

    def __init__(self) -> None:
        self._at, self._own, self._all = time.monotonic(), time.process_time(), _busy_seconds()

    def share(self) -> float:
        """Return how many of the cores for our threads other processes used, as a share of them; 0: none.

        Idle cores are available to others: on 64 cores, 16 busy ones do not slow 16 threads down.
        """
        wall = time.monotonic() - self._at
        if wall <= 0:
            return 0.0
        others = (_busy_seconds() - self._all - (time.process_time() - self._own)) / wall
        threads = default_threads()
        spare = (psutil.cpu_count() or threads) - threads
        return max(others - spare, 0.0) / threads


def _busy_seconds() -> float:
    """Return the seconds that all processors together have computed, a host's share taken from a guest included."""
    t = psutil.cpu_times()
    return sum(getattr(t, name, 0.0) for name in ("user", "system", "nice", "irq", "softirq", "steal"))


def resident_bytes(pid: int) -> int:
    """Return the bytes that another process holds in memory; 0 for one that is gone, and for this one."""
    if not pid or pid == os.getpid():
        return 0
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def show_bytes(count: float) -> str:
    """Write a byte count for people, in units of 1000: "3.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def default_threads() -> int:
    """Return the physical cores this process may use, by affinity and CPU quota, without siblings and slow cores."""
    return usable_cores(processor(), allowed_processors(), cpu_quota())


def cpu_quota(root: Path = CGROUP) -> float | None:
    """Return the processors the control group grants, None without a limit (version 2, then version 1)."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{n}_us").read_text(encoding="ascii") for n in ("quota", "period")
            )
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except ValueError:
        return None


def cpu_name() -> str:
    """Return the processor's name, after the board's where the system names one."""
    return processor().title or platform.processor() or platform.machine()
