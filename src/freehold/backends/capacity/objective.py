"""Objectives in words (ttft-p95=2s), and the fewest replicas that meet them.

The search is made with the step times as they are, and again at both ends of their doubt: the number has a range.
Path: reports/capacity.py -> parse, least -> simulation.simulate -> ReplicaSearch
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from freehold.advisor.interval import Interval, digits
from freehold.backends.capacity.simulation import SimulatedRun, simulate
from freehold.backends.capacity.steptime import EngineModel
from freehold.backends.capacity.trace import RequestTrace
from freehold.config import nearest
from freehold.errors import UsageError

FIGURES = ("ttft", "tpot", "latency")
_WORDS = re.compile(r"([a-z]+)-p(\d{1,2}(?:\.\d+)?)\s*(?:=|<=|<)\s*(\d+(?:\.\d+)?)\s*(ms|s)")
MOST = 1024  # replicas that are tried


@dataclass(frozen=True, slots=True)
class Aim:
    """A percentile of a figure that may not be more than `seconds`."""

    figure: str  # ttft, tpot, latency
    percent: float
    seconds: float

    def met(self, run: SimulatedRun) -> bool:
        """Say whether a run keeps it."""
        return run.percentile(self.figure, self.percent) <= self.seconds

    def __str__(self) -> str:
        """Write it as it is given."""
        return f"{self.figure}-p{self.percent:g}={shown(self.seconds)}"


def parse(text: str) -> tuple[Aim, ...]:
    """Read "ttft-p95=2s,tpot-p95=50ms". Raises UsageError."""
    aims = []
    for part in filter(None, (p.strip() for p in text.lower().split(","))):
        match = _WORDS.fullmatch(part)
        if match is None:
            raise UsageError(
                f"{part!r} is not an objective", "write ttft-p95=2s, tpot-p50=40ms or latency-p99=30s"
            )
        if match[1] not in FIGURES:
            near = nearest(match[1], FIGURES)
            raise UsageError(
                f"no figure named {match[1]!r}",
                f"did you mean {near}?" if near else f"known: {', '.join(FIGURES)}",
            )
        seconds = float(match[3]) * (1e-3 if match[4] == "ms" else 1.0)
        if not seconds:
            raise UsageError(
                f"{part!r}: no engine takes no time", "write a time above 0, such as ttft-p95=2s"
            )
        aims.append(Aim(match[1], float(match[2]), seconds))
    if not aims:
        raise UsageError("the objective is empty", "write ttft-p95=2s,tpot-p95=50ms")
    return tuple(aims)


@dataclass(frozen=True)
class ReplicaSearch:
    """The fewest replicas: with the step times as they are, and at the ends of their doubt. None: not within `most`."""

    aims: tuple[Aim, ...]
    replicas: int | None
    fewest: int | None  # where steps take as little as they may
    most_needed: int | None  # where they take as long as they may
    run: SimulatedRun  # of `replicas`, or of the most that was tried
    missed: tuple[Aim, ...]  # by `run`
    tried: tuple[tuple[int, SimulatedRun], ...]


def least(
    trace: RequestTrace,
    model: EngineModel,
    aims: Sequence[Aim],
    *,
    routing: str = "least-loaded",
    most: int = MOST,
    on_progress: Callable[[str], None] | None = None,
) -> ReplicaSearch:
    """Find the fewest replicas that meet every aim, by doubling and halving."""
    doubt = model.time.doubt()
    middle = _Search(trace, model, aims, routing, most, on_progress)
    rate = middle.least()
    bounds: list[int | None] = []
    for factor in (doubt.low, doubt.high):
        other = EngineModel(model.time.times(factor), model.limits, model.about)
        search = _Search(trace, other, aims, routing, most, on_progress)
        bounds.append(rate if factor == 1.0 else search.least(start=rate or most))
    run = middle.runs[rate if rate is not None else most]
    missed = tuple(aim for aim in aims if not aim.met(run))
    tried = tuple(sorted(middle.runs.items()))
    return ReplicaSearch(tuple(aims), rate, bounds[0], bounds[1], run, missed, tried)


class _Search:
    def __init__(
        self,
        trace: RequestTrace,
        model: EngineModel,
        aims: Sequence[Aim],
        routing: str,
        most: int,
        on_progress: Callable[[str], None] | None,
    ) -> None:
        self._trace, self._model, self._aims, self._routing = trace, model, aims, routing
        self._most, self._on_progress = most, on_progress
        self.runs: dict[int, SimulatedRun] = {}

    def least(self, start: int = 1) -> int | None:
        """Return the fewest, or None."""
        high = min(start, self._most)
        low = 0  # does not do
        while not self._does(high):
            if high >= self._most:
                return None
            low, high = high, min(2 * high, self._most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._does(middle) else (middle, high)
        return high

    def _does(self, count: int) -> bool:
        if count not in self.runs:

            def show(share: float) -> None:
                if self._on_progress:
                    self._on_progress(f"{count} replicas: {share:.0%} of the trace")

            self.runs[count] = simulate(
                self._trace, self._model, count, routing=self._routing, on_progress=show
            )
        return all(aim.met(self.runs[count]) for aim in self._aims)


def shown(seconds: float | Interval) -> str:
    """Write seconds for people: 1.82 s, 34.5 ms."""
    mid = seconds.mid if isinstance(seconds, Interval) else seconds
    unit, factor = ("s", 1.0) if mid >= 1 else ("ms", 1e3)
    if isinstance(seconds, Interval):
        return f"{seconds.times(factor)} {unit}"
    return f"{digits(seconds * factor)} {unit}"
