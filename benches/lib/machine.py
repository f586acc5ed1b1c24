"""What a benchmark's figures belong to: the machine, the commit, the model's file and what bounds the machine.

Measures nothing itself: a child with the native module does (`driver.serve`). Knows no peer.
Path: peers.py, race.py, soak.py, chaos.py -> describe, resolve, ceilings
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benches.lib.environments import ROOT
from benches.lib.measures import Ceilings
from benches.lib.peer import Child


def describe(path: Path) -> dict[str, Any]:
    """Name what the figures belong to, and how loaded the machine was before."""
    from freehold.base.machine import cpu_name

    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"cpu": cpu_name(), "commit": commit, "model": path.name, "load_1m": round(load, 2)}


def resolve(model: str) -> Path:
    """Turn MODEL into the path of a file: a path as it stands, anything else through Freehold's own store."""
    if Path(model).is_file():
        return Path(model).resolve()
    from freehold.base.config import load_settings
    from freehold.run.store import Store

    return Store(load_settings()).resolve(model).path


def thread_counts(limit: int | None) -> list[int]:
    """List the thread counts to try: 1, 2, 4, ... and all there are; or the one that was asked for."""
    if limit:
        return [limit]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({min(1 << i, cores) for i in range(cores.bit_length() + 1)})


def ceilings(child: Child, threads: list[int]) -> dict[str, list[float]]:
    """Measure what the machine gives, to one thread and to all."""
    return child.ask("ceilings", threads=sorted({1, threads[-1]}))


def better(one: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, list[float]]:
    """Give the most of two measurements of `ceilings`."""
    return {
        name: [max(pair) for pair in zip(values, other[name], strict=True)] for name, values in one.items()
    }


def bounds(measured: dict[str, list[float]]) -> Ceilings:
    """Give what bounds a speed: reads, and the faster integer unit."""
    gops = max(value for name, values in measured.items() if name.endswith("gops") for value in values)
    return Ceilings(max(measured["measure_read_gb_s"]), gops)


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)
