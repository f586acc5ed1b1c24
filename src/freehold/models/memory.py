"""How much memory this process may still take: the machine's, and its control group's.

Knows /proc through psutil and the cgroup files; knows no model.
Path: loader (may the weights be packed?), engine.capacity (how long a context fits?) -> available_bytes
"""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
# Limit and usage files of version 2 and version 1; "max" and absurdly large numbers mean none.
_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_STAT = ("memory.stat", "memory/memory.stat")


def available_bytes() -> int:
    """Return the bytes that can still be allocated without swapping or being killed."""
    free = psutil.virtual_memory().available
    limit = cgroup_available_bytes()
    return free if limit is None else min(free, limit)


def cgroup_available_bytes(root: Path = _CGROUP) -> int | None:
    """Return what the control group leaves, counting its file cache as free; None without a limit."""
    for (limit_name, usage_name), stat_name in zip(_FILES, _STAT, strict=True):
        limit, usage = _number(root / limit_name), _number(root / usage_name)
        if limit is not None and usage is not None and limit < psutil.virtual_memory().total:
            return max(limit - usage + _file_cache(root / stat_name), 0)
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


def show_bytes(count: float) -> str:
    """Write a byte count for people, in units of 1000: "3.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
