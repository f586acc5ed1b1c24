"""Appends rows to benches/results/<cpu>.csv, a file for each kind of machine and what was raced; percentiles.

Path: peers.py, race.py -> append
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benches.lib.environments import ROOT

RESULTS = ROOT / "benches" / "results"
OURS = "freehold"
COLUMNS = [
    *("date", "commit", "cpu", "model", "peer", "version", "weights", "setting", "threads", "busy"),
    *("measure", "unit", "median", "min", "max", "cores", "ceiling"),
]


def append(
    made: list[dict[str, Any]], cpu: str, cores: int, columns: list[str] = COLUMNS, what: str = ""
) -> Path:
    """Add rows to the file of this kind of machine, and of what was raced."""
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", cpu.lower())).strip("-")
    path = RESULTS / f"{name}-{cores}cpu{what}.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(made)
    return path


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the least value that `percent` of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)) - 1, 0)] if ordered else 0.0
