"""This machine: its processor, and what of processors and memory this process may still use.

Facts of the system are read from /proc/cpuinfo, /sys and the device tree on Linux, from sysctl on macOS, all through a
Host: the machine's system, the root of its files and its sysctl. Tests pass a Host with recorded texts of other
machines. Knows no kernel of ours and no model.

Of the processor: its name, its kinds of cores and which of them compute, its vector extensions. A step of the engine
ends when its last thread does, so cores that are much slower than others are left out. ARM's cores have names by the
numbers that /proc/cpuinfo gives, MIDR_EL1's, as the Linux kernel lists them for arm64 (its cputype header) and
util-linux for lscpu, read on 2026-11-27. A core that is not listed is shown by its numbers.

Of this process: its affinity and quota, what others compute, and how much memory may still be taken, by the machine,
its control group and the pressure that macOS reports; sizes of pages and caches.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from freehold.base.platforms import SYSTEM, allowed_processors, processors

# --- where facts about a machine are read ----------------------------------------------------------

# Trees and names that are asked for; sysctl skips a name that this macOS does not have, and says so on stderr.
_SYSCTL_NAMES = (
    "hw",
    "machdep.cpu",
    "sysctl.proc_translated",
    "kern.memorystatus_level",
    "kern.memorystatus_vm_pressure_level",
    "vm.page_free_count",
)


def run_sysctl() -> Mapping[str, str]:
    """Ask sysctl(8) of macOS; empty where there is none."""
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", *_SYSCTL_NAMES], capture_output=True, text=True, check=False
        )
    except OSError:
        return {}
    return parse_sysctl(done.stdout)


def parse_sysctl(text: str) -> dict[str, str]:
    """Read lines of `name: value`."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


@dataclass(frozen=True)
class Host:
    """One machine as its system describes it. Files that are missing read as empty."""

    system: str = SYSTEM
    root: Path = Path("/")
    sysctl: Callable[[], Mapping[str, str]] = run_sysctl

    @property
    def is_mac(self) -> bool:
        """Whether facts come from sysctl instead of files."""
        return self.system == "darwin"

    def text(self, path: str) -> str:
        """Return a file's text, `path` counted from the root."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        """Return the whole number a file holds."""
        return whole(self.text(path))


def whole(text: str | None) -> int | None:
    """Return the number a text holds, None for any other text."""
    try:
        return int((text or "").strip())
    except ValueError:
        return None


HERE = Host()


# --- names of ARM's cores --------------------------------------------------------------------------

_ARM, _FUJITSU, _HISILICON, _QUALCOMM, _APPLE, _MICROSOFT, _AMPERE = 0x41, 0x46, 0x48, 0x51, 0x61, 0x6D, 0xC0
_NAMES = {
    (_ARM, 0xD03): "Cortex-A53",
    (_ARM, 0xD04): "Cortex-A35",
    (_ARM, 0xD05): "Cortex-A55",
    (_ARM, 0xD07): "Cortex-A57",
    (_ARM, 0xD08): "Cortex-A72",
    (_ARM, 0xD09): "Cortex-A73",
    (_ARM, 0xD0A): "Cortex-A75",
    (_ARM, 0xD0B): "Cortex-A76",
    (_ARM, 0xD0C): "Neoverse-N1",
    (_ARM, 0xD0D): "Cortex-A77",
    (_ARM, 0xD0E): "Cortex-A76AE",
    (_ARM, 0xD40): "Neoverse-V1",
    (_ARM, 0xD41): "Cortex-A78",
    (_ARM, 0xD42): "Cortex-A78AE",
    (_ARM, 0xD44): "Cortex-X1",
    (_ARM, 0xD46): "Cortex-A510",
    (_ARM, 0xD47): "Cortex-A710",
    (_ARM, 0xD48): "Cortex-X2",
    (_ARM, 0xD49): "Neoverse-N2",
    (_ARM, 0xD4B): "Cortex-A78C",
    (_ARM, 0xD4C): "Cortex-X1C",
    (_ARM, 0xD4D): "Cortex-A715",
    (_ARM, 0xD4E): "Cortex-X3",
    (_ARM, 0xD4F): "Neoverse-V2",
    (_ARM, 0xD80): "Cortex-A520",
    (_ARM, 0xD81): "Cortex-A720",
    (_ARM, 0xD82): "Cortex-X4",
    (_ARM, 0xD83): "Neoverse-V3AE",
    (_ARM, 0xD84): "Neoverse-V3",
    (_ARM, 0xD85): "Cortex-X925",
    (_ARM, 0xD87): "Cortex-A725",
    (_ARM, 0xD8E): "Neoverse-N3",
    (_FUJITSU, 0x001): "A64FX",
    (_HISILICON, 0xD01): "TaiShan-v110",
    (_QUALCOMM, 0x001): "Oryon",
    (_APPLE, 0x022): "Apple M1 Icestorm",
    (_APPLE, 0x023): "Apple M1 Firestorm",
    (_APPLE, 0x024): "Apple M1 Pro Icestorm",
    (_APPLE, 0x025): "Apple M1 Pro Firestorm",
    (_APPLE, 0x028): "Apple M1 Max Icestorm",
    (_APPLE, 0x029): "Apple M1 Max Firestorm",
    (_APPLE, 0x032): "Apple M2 Blizzard",
    (_APPLE, 0x033): "Apple M2 Avalanche",
    (_APPLE, 0x034): "Apple M2 Pro Blizzard",
    (_APPLE, 0x035): "Apple M2 Pro Avalanche",
    (_APPLE, 0x038): "Apple M2 Max Blizzard",
    (_APPLE, 0x039): "Apple M2 Max Avalanche",
    (_MICROSOFT, 0xD49): "Azure Cobalt 100",
    (_AMPERE, 0xAC3): "AmpereOne",
    (_AMPERE, 0xAC4): "AmpereOne A",
}
# In-order cores, and Apple's efficiency cores: half of a large neighbour's speed or less.
_SMALL = ("Cortex-A53", "Cortex-A35", "Cortex-A55", "Cortex-A510", "Cortex-A520", "Icestorm", "Blizzard")


def core_name(implementer: int, part: int) -> str:
    """Return a core's name; its numbers where they are not known."""
    return _NAMES.get((implementer, part)) or f"ARM core {implementer:#x}/{part:#x}"


def is_small(name: str) -> bool:
    """Whether a core of this name is a small one, if there are others beside it."""
    return name.endswith(_SMALL)


# --- this machine's processor ----------------------------------------------------------------------

_CPU = "/sys/devices/system/cpu"
# A core with less than this share of the fastest one's capacity does not compute. Capacities are the kernel's, 1024 for
# the fastest: small ARM cores have 250 to 530, cores of one design at other clocks 700 and more.
_FAST = 0.6
_FAST_CLOCK = 0.7  # of the highest clock, where the kernel gives no capacity and names do not tell
_BOARDS = ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model")
# What kernels are chosen by, in one spelling: that of Linux's flags, or else what macOS calls it.
_X86 = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512vbmi",
    "avx512_vbmi2",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
]
_ARM_FLAGS = {
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "asimdfhm": "fhm",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
_MAC = {
    "FEAT_DotProd": "dotprod",
    "FEAT_FP16": "fp16",
    "FEAT_FHM": "fhm",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "FEAT_SME": "sme",
}
_MAC_X86 = {"AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "AVX512F": "avx512f", "AVX512VNNI": "avx512_vnni"}


@dataclass(frozen=True, slots=True)
class CoreKind:
    """Physical cores of one kind."""

    name: str  # "Cortex-A76", "Performance"; empty where there is one kind without a name
    count: int
    computes: bool  # False: so slow that the others would wait for it


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor of a machine, whether this process may use all of it or not."""

    name: str
    board: str  # "Raspberry Pi 5 Model B Rev 1.0"; empty where the system names none
    kinds: tuple[CoreKind, ...]
    features: tuple[str, ...]
    slow: frozenset[int] = frozenset()  # logical processors that do not compute
    is_translated: bool = False  # an x86-64 program on Apple silicon

    @property
    def title(self) -> str:
        """The board and its processor, as one name."""
        return f"{self.board} ({self.name})" if self.board else self.name


@cache
def processor(host: Host = HERE) -> Processor:
    """Describe the processor; this reads some files, or runs sysctl, once."""
    return _mac(host) if host.is_mac else _linux(host)


def usable_cores(chip: Processor, allowed: set[int], quota: float | None, host: Host = HERE) -> int:
    """Return how many cores compute for a process: of those it may run on, each once, within its quota.

    macOS pins no thread, so its cores are counted by kind.
    """
    if host.is_mac:
        count = sum(kind.count for kind in chip.kinds if kind.computes)
    else:
        count = len({core_of(cpu, host) for cpu in (allowed - chip.slow or allowed)})
    return max(1, min(count, math.ceil(quota) if quota else count))


# --- macOS --------------------------------------------------------------------------------------------


def _mac(host: Host) -> Processor:
    sysctl = host.sysctl()
    return Processor(
        name=sysctl.get("machdep.cpu.brand_string", "") or sysctl.get("hw.machine", "") or "Mac",
        board="",
        kinds=tuple(_mac_kinds(sysctl)),
        features=tuple(_mac_features(sysctl)),
        is_translated=sysctl.get("sysctl.proc_translated") == "1",
    )


def _mac_kinds(sysctl: Mapping[str, str]) -> Iterable[CoreKind]:
    """Yield the performance levels, fastest first: Performance and Efficiency; from the M5 on also Super.

    Only Efficiency cores are left out, by their name: a chip of Super and Performance cores has none. macOS 12 names no
    levels; there the first one computes, and an Intel Mac has no levels.
    """
    levels = whole(sysctl.get("hw.nperflevels")) or 0
    if not levels and "hw.perflevel0.physicalcpu" in sysctl:
        levels = 2
    for level in range(levels):
        count = whole(sysctl.get(f"hw.perflevel{level}.physicalcpu"))
        name = sysctl.get(f"hw.perflevel{level}.name", "")
        if count:
            yield CoreKind(name, count, name != "Efficiency" if name else level == 0)
    if not levels:
        yield CoreKind("", whole(sysctl.get("hw.physicalcpu")) or 1, True)


def _mac_features(sysctl: Mapping[str, str]) -> Iterable[str]:
    features = {name for old, name in _MAC.items() if sysctl.get(f"hw.optional.arm.{old}") == "1"}
    if sysctl.get("hw.optional.neon_fp16") == "1":  # macOS 11 has these names only
        features.add("fp16")
    words = f"{sysctl.get('machdep.cpu.features', '')} {sysctl.get('machdep.cpu.leaf7_features', '')}".split()
    return sorted(features | {_MAC_X86[word] for word in words if word in _MAC_X86})


# --- Linux --------------------------------------------------------------------------------------------


def _linux(host: Host) -> Processor:
    rows = cpuinfo(host.text("/proc/cpuinfo"))
    names = {int(row["processor"]): _core_of(row) for row in rows if row.get("processor", "").isdigit()}
    is_arm = any("CPU part" in row for row in rows)
    slow = _slow(host, names) if is_arm else frozenset()
    return Processor(
        name=_joined(names.values()) if is_arm else next(iter(names.values()), ""),
        board=_board(host, rows) if is_arm else "",
        kinds=tuple(_linux_kinds(host, names, slow, is_arm)),
        features=tuple(_linux_features(rows)),
        slow=slow,
    )


def cpuinfo(text: str) -> list[dict[str, str]]:
    """Split /proc/cpuinfo into its paragraphs of `name: value`."""
    rows = []
    for paragraph in re.split(r"\n\s*\n", text):
        pairs = (line.partition(":") for line in paragraph.splitlines())
        row = {name.strip(): value.strip() for name, colon, value in pairs if colon}
        if row:
            rows.append(row)
    return rows


def _core_of(row: dict[str, str]) -> str:
    try:
        return core_name(int(row["CPU implementer"], 0), int(row["CPU part"], 0))
    except (KeyError, ValueError):
        return row.get("model name", "")


def _joined(names: Iterable[str]) -> str:
    """Name all kinds, those with a larger number first, which are the larger cores."""
    return " + ".join(sorted({name for name in names if name}, key=lambda n: (is_small(n), n)))


def _board(host: Host, rows: list[dict[str, str]]) -> str:
    """Return the board's model: never its serial number, which is in the same place."""
    board = next((text for path in _BOARDS if (text := host.text(path).strip("\0 \n"))), "")
    board = board or next((row["Model"] for row in rows if "Model" in row), "")
    return "" if board.startswith(("linux,dummy-virt", "QEMU")) else board


def _linux_kinds(host: Host, names: dict[int, str], slow: frozenset[int], named: bool) -> Iterable[CoreKind]:
    """Yield the kinds of physical cores, those that compute first."""
    cores = {core_of(cpu, host): (names[cpu] if named else "", cpu not in slow) for cpu in sorted(names)}
    for (name, computes), count in sorted(Counter(cores.values()).items(), key=lambda row: not row[0][1]):
        yield CoreKind(name, count, computes)


def core_of(cpu: int, host: Host = HERE) -> str:
    """Name a logical processor's core by its siblings; processors that hide them count as cores."""
    return host.text(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu)


def _slow(host: Host, names: dict[int, str]) -> frozenset[int]:
    """Return the processors that are much slower than the fastest: by capacity, else by name, else by clock."""
    capacity = {cpu: host.number(f"{_CPU}/cpu{cpu}/cpu_capacity") for cpu in names}
    known = {cpu: value for cpu, value in capacity.items() if value}
    if known and len(known) == len(names):
        return _below(known, _FAST)
    small = frozenset(cpu for cpu, name in names.items() if is_small(name))
    if small and len(small) < len(names):
        return small
    clock = {cpu: host.number(f"{_CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq") or 0 for cpu in names}
    return _below(clock, _FAST_CLOCK) if all(clock.values()) else frozenset()


def _below(values: dict[int, int], share: float) -> frozenset[int]:
    most = max(values.values(), default=0)
    return frozenset(cpu for cpu, value in values.items() if value < share * most)


def _linux_features(rows: list[dict[str, str]]) -> Iterable[str]:
    """Return what every processor has: a thread may run on any of them."""
    sets = [set(f"{row.get('flags', '')} {row.get('Features', '')}".split()) for row in rows]
    sets = [features for features in sets if features]
    shared = set.intersection(*sets) if sets else set[str]()
    arm = {flag for name, flag in _ARM_FLAGS.items() if name in shared}
    return sorted({name for name in _X86 if name in shared} | arm)


# --- which processors have memory of their own near them --------------------------------------------
# NUMA nodes, as Linux lists them; macOS has one.

_NODES = "sys/devices/system/node"
_MOST = 1024  # nodes that are looked for


def memory_nodes(allowed: Iterable[int], host: Host = HERE) -> tuple[frozenset[int], ...]:
    """Return the `allowed` logical processors of each node that has some; where nodes are not listed, all as one."""
    usable, nodes = frozenset(allowed), list[frozenset[int]]()
    try:
        for node in sorted(processors(host.text(f"{_NODES}/online")))[:_MOST]:
            nodes.append(usable & processors(host.text(f"{_NODES}/node{node}/cpulist")))
    except ValueError:
        nodes.clear()
    found = tuple(node for node in nodes if node)
    return found if frozenset().union(*found) == usable else (usable,)


def listed(processors: Iterable[int]) -> str:
    """Write processors as Linux does: "0-15,32-47"."""
    runs: list[list[int]] = []
    for each in sorted(processors):
        if runs and runs[-1][1] == each - 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


# --- what this process may use ---------------------------------------------------------------------

CGROUP = Path("/sys/fs/cgroup")
# Limit and usage files of version 2 and version 1; "max" and absurdly large numbers mean none.
_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_STAT = ("memory.stat", "memory/memory.stat")
_HUGE = "/sys/kernel/mm/transparent_hugepage"
_PRESSED = 2  # kern.memorystatus_vm_pressure_level: 1 normal, 2 warning, 4 critical
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


# --- memory ----------------------------------------------------------------------------------------


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
