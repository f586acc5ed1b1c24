"""Where this user's trainings and evaluations lie: a line for each when it begins, so that the page finds them.

Results are made where the user says; the home keeps their paths alone, and the process that works on each. Knows no
verb's work.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.base import private

FILE = "trainings.jsonl"
MOST_BYTES = 4 << 20  # of the file that are read: 20,000 lines
KEPT = 1000  # folders


@dataclass(frozen=True, slots=True)
class NotedRun:
    """One folder, and the process that began on it last."""

    verb: str  # "eval" too
    out: Path
    at: float  # time.time()
    pid: int
    started: float  # of the process, as psutil has it

    @property
    def running(self) -> bool:
        """Whether that process is still there."""
        return self.started > 0 and _started(self.pid) == self.started


def note(home: Path, verb: str, out: Path) -> None:
    """Add a line; a home that cannot be written keeps none."""
    pid = os.getpid()
    row = {"verb": verb, "out": str(out.absolute()), "at": time.time(), "pid": pid, "started": _started(pid)}
    with (
        suppress(OSError),
        open(private.folder(home) / FILE, "a", encoding="utf-8", opener=private.opener) as file,
    ):
        file.write(json.dumps(row) + "\n")


def noted(home: Path) -> list[NotedRun]:
    """Return the folders, the newest first, each once; damaged lines are left out.

    A command that is refused because another process works on the folder has a line too: the one that works counts.
    """
    try:
        with (home / FILE).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - MOST_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return []
    runs: dict[Path, NotedRun] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            row: dict[str, Any] = json.loads(line)
            out, process = Path(str(row["out"])), (int(row["pid"]), float(row["started"]))
            one = NotedRun(str(row["verb"]), out, float(row["at"]), *process)
            before = runs.pop(one.out, None)
            runs[one.out] = before if before and before.running and not one.running else one
    return list(reversed(runs.values()))[:KEPT]


def _started(pid: int) -> float:
    """Return when a process began; 0 where there is none."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, ValueError, OverflowError):
        return 0.0
