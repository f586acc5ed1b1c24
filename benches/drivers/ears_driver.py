"""What the drivers of ears/ share: times with child processes, and memory. Standard library alone.

Path: ears/transcribe.py -> peer.Child -> ears_*.py -> this file
"""

from __future__ import annotations

import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

Row = tuple[float, float, str]  # seconds where a text begins and ends, and the text


class Hearer(ABC):
    """An engine with one model loaded."""

    @abstractmethod
    def segments(self, path: str, **setting: Any) -> list[Row]:
        """Return what is said in a recording, whose language is given as English."""

    def hear(self, path: str, setting: dict[str, Any]) -> dict[str, Any]:
        """Time a recording from its file to its text; `cpu_seconds` has those of child processes."""
        cpu, begun = _cpu(), time.perf_counter()
        rows = self.segments(path, **setting)
        seconds, cpu_seconds = time.perf_counter() - begun, _cpu() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # so far
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak, "segments": rows}


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Do work; return its seconds, and those of the processor."""
    cpu, begun = _cpu(), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begun, "cpu_seconds": _cpu() - cpu}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
