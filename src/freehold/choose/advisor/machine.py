"""Describes this machine for predictions: processor, memory, accelerators, and measured rates.

Rates are measured a few times, a quarter of a second each, and kept in machine.json of the data folder by processor,
threads and instruction set. Where memory lies and what neighbours do changes them, so the median of the latest counts.
Knows no model. GPUs are asked through NVML where its library is; published figures are catalog.hardware's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from freehold.base import machine as system
from freehold.base import private
from freehold.base.catalog.hardware import devices
from freehold.base.machine import HERE, cache_megabytes

FILE = "machine.json"
KEPT = 8  # measurements of one processor that are kept
FIRST = 5  # samples taken one at a time for each request of rates: single allocations differ by half in speed
GUESS = (10.0, 60.0)  # GB/s and 1e9 int8 operations a second of one thread, where nothing may be measured
# Megabytes that are read at least. Apple's chips share a last cache of 8 to 96 MB, which no sysctl names.
_LEAST_READ = 256 if HERE.is_mac else 48
_VARIANTS = {"ti", "super", "laptop", "mobile"}  # words that make a name another device's


@dataclass(frozen=True, slots=True)
class Rates:
    """What all threads together read and multiply; a factor of two off where it was not measured, or not alone."""

    read_gb_s: float
    int8_gops: float  # two operations for a multiplication and addition; vectors alone, no matrix unit
    measured: bool = True
    busy: bool = False  # others computed meanwhile


@dataclass(frozen=True, slots=True)
class Cost:
    """What work asks of a machine: `read` bytes while cores do `cores` operations, then `rest` operations more.

    Neither of the first two hides the other entirely, so they add up like the sides of a right angle.
    """

    read: float
    cores: float
    rest: float

    def seconds(self, rates: Rates) -> float:
        """Return how long it takes at these rates."""
        peak = rates.int8_gops * 1e9
        return math.hypot(self.read / (rates.read_gb_s * 1e9), self.cores / peak) + self.rest / peak


@dataclass(frozen=True, slots=True)
class Gpu:
    """An accelerator as its driver names it; `device`: what the catalogue calls it, empty if it does not know it."""

    title: str
    memory: int
    free: int
    device: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Where models would run: `memory` bytes in all, `free` that may still be taken, both within a control group."""

    cpu: str
    isa: str
    threads: int
    memory: int
    free: int
    limited: bool  # by a control group
    rates: Rates
    gpus: tuple[Gpu, ...] = ()
    device: str = ""  # of a Mac: the catalogue's name for it


def here(home: Path, *, measure: bool = True) -> Machine:
    """Describe this machine; rates come from `home`, or are measured (`measure`) or guessed where it has none."""
    from freehold import _native as native

    cpu, threads = system.cpu_name(), system.default_threads()
    known = len(_read(home / FILE).get(name_here(), []))
    rates = measured(home) if measure and known < FIRST else kept(home, name_here())
    total, limit = psutil.virtual_memory().total, system.cgroup_limit_bytes()
    return Machine(
        cpu=cpu,
        isa=native.isa(),
        threads=threads,
        memory=min(total, limit or total),
        free=system.available_bytes(),
        limited=limit is not None,
        rates=rates or unmeasured(threads),
        gpus=tuple(nvidia()),
        device=mac_device(cpu),
    )


def name_here() -> str:
    """Return the name under which this machine's measurements and runs are kept: nothing that a restart changes."""
    from freehold import _native as native

    return f"{system.cpu_name()} | {system.default_threads()} threads | {native.isa()}"


def unmeasured(threads: int) -> Rates:
    """Return what this many threads usually get, where nothing was measured."""
    return Rates(GUESS[0] * threads, GUESS[1] * threads, measured=False)


# --- rates ------------------------------------------------------------------------------------------


def measured(home: Path) -> Rates:
    """Measure now and keep it; return what is known now."""
    now = rates_now()
    keep(home, name_here(), now)
    return kept(home, name_here()) or now


def rates_now() -> Rates:
    """Measure what the machine gives at this moment, a quarter of a second."""
    from freehold import _native as native

    threads, crowd = system.default_threads(), system.Crowd()
    waited = hasattr(os, "getloadavg") and os.getloadavg()[0] > threads / 2
    read, dots = native.measure_read_gb_s(threads, _megabytes()), native.measure_int8_gops(threads)
    return Rates(read, dots, busy=waited or crowd.share() > system.CROWDED)


def kept(home: Path, name: str) -> Rates | None:
    """Return the median of what was measured on a machine, alone if ever; None where nothing was.

    Of measurements beside others the best counts: the machine gives that much at least.
    """
    rows = _read(home / FILE).get(name, [])
    alone = [r for r in rows if not r.get("busy")]
    rows = alone or rows
    if not rows:
        return None
    of = median if alone else max
    return Rates(of(r["read_gb_s"] for r in rows), of(r["int8_gops"] for r in rows), busy=not alone)


def keep(home: Path, name: str, rates: Rates) -> None:
    """Add a measurement; a folder that cannot be written loses it, which costs the next one a second."""
    path = home / FILE
    rows = _read(path)
    row = {"read_gb_s": round(rates.read_gb_s, 2), "int8_gops": round(rates.int8_gops, 1), "busy": rates.busy}
    own = sorted([*rows.get(name, []), row], key=lambda r: not r.get("busy"))  # those beside others go first
    part = path.with_name(f"{FILE}.{os.getpid()}.part")
    try:
        private.folder(home)
        with open(part, "w", encoding="utf-8", opener=private.opener) as file:
            file.write(json.dumps(rows | {name: own[-KEPT:]}, indent=1))
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()


def _read(path: Path) -> dict[str, list[dict[str, float]]]:
    """Read what was kept; a damaged file counts as none, and is written anew."""
    try:
        history = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(history, dict):
        return {}
    return {name: [r for r in rows if _sound(r)] for name, rows in history.items() if isinstance(rows, list)}


def _sound(row: Any) -> bool:
    values = [row.get(k) for k in ("read_gb_s", "int8_gops")] if isinstance(row, dict) else [None]
    return all(isinstance(v, int | float) and 0 < v < 1e9 for v in values)


def _megabytes() -> int:
    """Return how much to read: twice what the last cache holds, so that a walk finds next to nothing in it."""
    return min(max(_LEAST_READ, round(2 * cache_megabytes())), 512)


# --- accelerators -----------------------------------------------------------------------------------


def nvidia() -> Iterable[Gpu]:
    """Yield the GPUs that NVML knows; none where its library is missing or refuses."""
    import ctypes

    class NvmlMemory(ctypes.Structure):
        _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    count, handle, title = ctypes.c_uint(), ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2():
        return
    try:
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
        for i in range(count.value):
            memory = NvmlMemory()
            if nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(handle)):
                continue
            if nvml.nvmlDeviceGetName(handle, title, len(title)) or nvml.nvmlDeviceGetMemoryInfo(
                handle, ctypes.byref(memory)
            ):
                continue
            name = title.value.decode("utf-8", "replace")
            yield Gpu(name, memory.total, memory.free, gpu_device(name, memory.total))
    finally:
        nvml.nvmlShutdown()


def gpu_device(title: str, memory: int) -> str:
    """Return the catalogue's name of what a driver calls `title`, of several the one whose memory is nearest; or ""."""
    title_words = set(_words(title))
    fitting = [
        (len(_words(name)), -abs(device.memory_bytes - memory), device.name)
        for device in devices()
        for name in (device.name, *device.aliases)
        if device.kind == "gpu"
        and set(_words(name)) <= title_words
        and _VARIANTS & title_words <= set(_words(name))
    ]
    return max(fitting, default=(0, 0, ""))[2]


def mac_device(cpu: str) -> str:
    """Return the catalogue's name of the Mac whose chip is called `cpu` ("Apple M4 Max"); empty if unknown."""
    wanted = "-".join(_words(cpu.removeprefix("Apple")))
    return next((d.name for d in devices() if d.kind == "mac" and wanted in (d.name, *d.aliases)), "")


def _words(text: str) -> list[str]:
    return re.findall(
        r"[a-z]+\d+[a-z]*|[a-z]+|\d+", text.lower().replace("nvidia", "").replace("geforce", "")
    )
