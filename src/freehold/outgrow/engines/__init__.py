"""The engines: a file each for its plan, and one for how it speaks where that is long; engines that run already.

What their drivers do alike is here: the start as a process of ours, its phases by lines of the log, counters.

Knows patterns; the tables are the drivers'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from freehold.outgrow.contract import DeployPlan, EngineNumbers, LaunchedEngine


class StartedEngine:
    """The half of a driver that starts its engine. An engine without counters has `numbers` as they are here."""

    title: str
    phases: tuple[tuple[str, str], ...]  # (pattern of a line, what it tells); the first that fits
    busy_waits = True

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it. Raises UsageError, EngineLost."""
        from freehold.outgrow.process.process import launch

        return await launch(plan, folder, phase=self.phase, title=self.title)

    def phase(self, line: str) -> str:
        """Return what a line of its log tells of the start; "" for nothing."""
        return next((phase for pattern, phase in self.phases if re.search(pattern, line)), "")

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Return what was known before: it has no metrics."""
        return before or EngineNumbers()


# --- the text of a Prometheus page as numbers: each series by its name, summed over its labels ----------
#     series(body)                  # {"vllm:num_requests_running": 3.0, ...}; raises ValueError
#     of_label(body, "sglang:realtime_tokens_total", "mode")   # {"decode": 812.0, "prefill_compute": 96.0}

# Beyond it a float does not count, and no counter of an engine comes near: it is left out.
MOST_COUNT = 2.0**53
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def series(body: bytes) -> dict[str, float]:
    """Return every series, summed over its labels. Raises ValueError for a body that is no such page."""
    sums: dict[str, float] = {}
    for name, _, value in _samples(body):
        sums[name] = min(sums.get(name, 0.0) + value, MOST_COUNT)
    if not sums and body.strip():
        raise ValueError("the metrics are not in Prometheus' text format")
    return sums


def of_label(body: bytes, name: str, label: str) -> dict[str, float]:
    """Return one series by the values of one label."""
    sums: dict[str, float] = {}
    for called, labels, value in _samples(body):
        if called == name:
            key = next((v for k, v in _LABEL.findall(labels) if k == label), "")
            sums[key] = sums.get(key, 0.0) + value
    return sums


def _samples(body: bytes) -> Iterator[tuple[str, str, float]]:
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("#") or (match := _SAMPLE.match(line)) is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if abs(value) <= MOST_COUNT:  # NaN is not
            yield match[1], match[2] or "", value
