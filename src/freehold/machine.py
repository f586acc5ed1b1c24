"""Free memory and usable processors of this process, by the machine and its control group.

Knows /proc through psutil, /sys and the cgroup files; knows no model.
Path: loader (may the weights be packed?), engine.capacity (how long a context fits?), advisor -> available_bytes
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_CPU = Path("/sys/devices/system/cpu")
# Limit and usage files of version 2 and version 1; "max" and absurdly large numbers mean none.
_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_STAT = ("memory.stat", "memory/memory.stat")


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


def available_bytes() -> int:
    """Return the bytes that can still be allocated without swapping or being killed."""
    free = psutil.virtual_memory().available
    limit = cgroup_available_bytes()
    return free if limit is None else min(free, limit)


def cgroup_available_bytes(root: Path = _CGROUP) -> int | None:
    """Return what the control group leaves, counting its file cache as free; None without a limit."""
    limit = cgroup_limit_bytes(root)
    for (_, usage_name), stat_name in zip(_FILES, _STAT, strict=True):
        usage = _number(root / usage_name)
        if limit is not None and usage is not None:
            return max(limit - usage + _file_cache(root / stat_name), 0)
    return None


def cgroup_limit_bytes(root: Path = _CGROUP) -> int | None:
    """Return what the control group may take in all; None where its limit is not below the machine's."""
    for limit_name, _ in _FILES:
        limit = _number(root / limit_name)
        if limit is not None and limit < psutil.virtual_memory().total:
            return limit
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _file_cache(path: Path) -> int:
    """Inactive file pages are given back under pressure, so they are not used up."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "total_inactive_file "))
    )


def memory_kills() -> int | None:
    """Return how many processes the kernel has ended for lack of memory since it started; None if it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def show_bytes(count: float) -> str:
    """Write a byte count for people, in units of 1000: "3.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def default_threads() -> int:
    """Return the physical cores this process may use: by its affinity, without siblings, and CPU quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core(cpu) for cpu in allowed}
    quota = _cpu_quota()
    return max(1, min(len(cores), math.ceil(quota) if quota else len(cores)))


def _core(cpu: int) -> str:
    """Name a processor's core by its siblings; processors that hide them count as cores."""
    try:
        return (_CPU / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _cpu_quota(root: Path = _CGROUP) -> float | None:
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
    """Return the processor's name, as /proc/cpuinfo or the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()
