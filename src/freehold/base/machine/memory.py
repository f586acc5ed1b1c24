"""How much memory may still be taken: by the machine, its control group, and the pressure that macOS reports.

Also the sizes of its pages and of the caches. Knows /proc through psutil; knows no model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from freehold.base.machine.host import HERE, Host, whole

CGROUP = Path("/sys/fs/cgroup")
# Limit and usage files of version 2 and version 1; "max" and absurdly large numbers mean none.
_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_STAT = ("memory.stat", "memory/memory.stat")
_HUGE = "/sys/kernel/mm/transparent_hugepage"
_PRESSED = 2  # kern.memorystatus_vm_pressure_level: 1 normal, 2 warning, 4 critical


def available_bytes() -> int:
    """Return the bytes that can still be allocated without swapping or being killed."""
    free = psutil.virtual_memory().available
    if HERE.is_mac:
        return mac_available_bytes(free, HERE.sysctl())
    limit = cgroup_available_bytes()
    return free if limit is None else min(free, limit)


def mac_available_bytes(free: int, sysctl: Mapping[str, str]) -> int:
    """Bound `free`, unused and inactive pages, by what macOS says itself.

    Its own percentage (memorystatus_level) leaves out what is wired or compressed. Under pressure inactive pages are
    being compressed or swapped already, so only unused ones are left.
    """
    total, level = whole(sysctl.get("hw.memsize")), whole(sysctl.get("kern.memorystatus_level"))
    if total and level is not None:
        free = min(free, total * level // 100)
    unused, page = whole(sysctl.get("vm.page_free_count")), whole(sysctl.get("hw.pagesize"))
    pressure = whole(sysctl.get("kern.memorystatus_vm_pressure_level")) or 0
    return min(free, unused * page) if pressure >= _PRESSED and unused is not None and page else free


def cgroup_available_bytes(root: Path = CGROUP) -> int | None:
    """Return what the control group leaves, counting its file cache as free; None without a limit."""
    limit = cgroup_limit_bytes(root)
    for (_, usage_name), stat_name in zip(_FILES, _STAT, strict=True):
        usage = _number(root / usage_name)
        if limit is not None and usage is not None:
            return max(limit - usage + _file_cache(root / stat_name), 0)
    return None


def cgroup_limit_bytes(root: Path = CGROUP) -> int | None:
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


def memory_kills(host: Host = HERE) -> int | None:
    """Return how many processes the kernel has ended for lack of memory since it started; None if it does not say."""
    lines = host.text("/proc/vmstat").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


@dataclass(frozen=True, slots=True)
class PageSizes:
    """Bytes of a page, and of a huge one that a walk over weights misses the TLB less with."""

    page: int
    huge: int  # 0: the system has none for programs (macOS), or does not say
    mode: str  # always | madvise | never, as the kernel is set; empty without huge pages


def page_sizes(host: Host = HERE, page: int = 0) -> PageSizes:
    """Return the page sizes; `page` bytes where given, else those of this system."""
    if host.is_mac:
        return PageSizes(whole(host.sysctl().get("hw.pagesize")) or page, 0, "")
    huge = host.number(f"{_HUGE}/hpage_pmd_size") or 0
    mode = re.search(r"\[(\w+)\]", host.text(f"{_HUGE}/enabled"))
    return PageSizes(page or os.sysconf("SC_PAGE_SIZE"), huge if mode else 0, mode[1] if mode else "")


def cache_megabytes(host: Host = HERE) -> float:
    """Return what the largest cache of the first core holds; 0 if unknown. Of Apple's chips it is the L2."""
    if host.is_mac:
        sysctl = host.sysctl()
        return (whole(sysctl.get("hw.perflevel0.l2cachesize") or sysctl.get("hw.l3cachesize")) or 0) / (
            1 << 20
        )
    megabytes = 0.0
    for index in range(8):
        size = re.fullmatch(
            r"(\d+)([KM])", host.text(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").strip()
        )
        if size:
            megabytes = max(megabytes, int(size[1]) * (1 if size[2] == "M" else 1 / 1024))
    return megabytes
