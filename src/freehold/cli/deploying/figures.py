"""What `freehold deploy capacity` prints: a table of runs, the fewest replicas, cost; or JSON.

Knows figures and words. Path: deploying/capacity.py -> Capacity.add, add_least -> lines, as_json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from freehold.advisor.interval import Interval, digits
from freehold.backends.capacity.objective import FIGURES, Aim, ReplicaSearch, shown
from freehold.backends.capacity.scaling import Autoscaling
from freehold.backends.capacity.simulation import SimulatedRun
from freehold.backends.capacity.steptime import EngineModel
from freehold.backends.capacity.trace import RequestTrace
from freehold.catalog.hardware import Money

SCHEMA = 1
PERCENTS = (50, 95, 99)
HEAD = ("REPLICAS", "ROUTING", "TTFT p50", "p95", "p99", "TPOT p50", "p95", "p99", "HIT", "BUSY", "USD/h")
# Times the p95 of the first quarter of answers, and of the whole time: a last answer that is later than both after the
# last arrival says that the replicas did not keep up.
_LATE, _SHARE = 3.0, 0.05
_ABOUT = ("model", "quant", "hardware", "engine")


class Capacity:
    """Simulated runs of one trace and engine. `rent`: dollars an hour of a replica; None: not known."""

    def __init__(self, trace: RequestTrace, engine: EngineModel, rent: Money | float | None) -> None:
        self.trace, self.engine, self._rent = trace, engine, rent
        self._runs: list[tuple[SimulatedRun, Autoscaling | None]] = []
        self._least: list[tuple[tuple[Aim, ...], ReplicaSearch]] = []

    def add(self, run: SimulatedRun, scaling: Autoscaling | None = None) -> None:
        """Add a run."""
        self._runs.append((run, scaling))

    def add_least(self, aims: tuple[Aim, ...], sizes: ReplicaSearch) -> None:
        """Add a search for the fewest replicas, with the runs next to its answer."""
        self._least.append((aims, sizes))
        near = {sizes.run.replicas, sizes.run.replicas - 1}
        self._runs += [(run, None) for count, run in sizes.tried if count in near]

    # --- for people --------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        """Yield the lines of the page."""
        trace = self.trace
        yield (
            f"{trace.source}: {len(trace.requests):,} requests in {_time(trace.span_s)}, {digits(trace.rate)}/s, "
            f"{trace.prompt_mean:,.0f} + {trace.answer_mean:,.0f} tokens"
        )
        about = ", ".join(str(v) for v in map(self.engine.about.get, _ABOUT) if v)
        yield f"{about or 'engine'}: {self.engine.time.basis}; a step may take {_doubt(self.engine)}"
        rows = [_row(run, self._hourly(run)) for run, _ in self._runs]
        widths = [max(len(r[i]) for r in [HEAD, *rows]) for i in range(len(HEAD))]
        for row in [HEAD, *rows]:
            cells = (
                c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            yield "  ".join(cells).rstrip()
        for run, scaling in self._runs:
            yield from _notes(run, scaling)
        if any(run.routing == "prefix" for run, _ in self._runs) and not any(
            r.blocks for r in trace.requests
        ):
            yield "prefix: the trace has no hashes of blocks, so no prompt begins as another one"
        for aims, sizes in self._least:
            yield from self._least_lines(aims, sizes)

    def _least_lines(self, aims: tuple[Aim, ...], sizes: ReplicaSearch) -> Iterator[str]:
        asked = ", ".join(map(str, aims))
        if sizes.replicas is None:
            missed = ", ".join(
                f"{a.figure}-p{a.percent:g} is {shown(sizes.run.percentile(a.figure, a.percent))}"
                for a in sizes.missed
            )
            yield f"{sizes.run.routing}: {_count(sizes.run.replicas, 'replica')} cannot keep {asked}: {missed}"
            return
        low, high = sizes.fewest or sizes.replicas, sizes.most_needed
        bounds = f"{low} to {high if high is not None else 'more than was tried'}"
        bounds = "no other number" if low == high else bounds
        count = _count(sizes.replicas, "replica")
        yield f"{sizes.run.routing}: {count} for {asked} ({bounds} by the doubt about steps)"
        for aim in aims:
            found = shown(sizes.run.bounded(aim.figure, aim.percent))
            yield f"  {aim.figure}-p{aim.percent:g}: {found}, as far as this trace is like the next"
        if cost := self._hourly(sizes.run):
            million = cost.times(1e6 * sizes.run.span_s / 3600 / max(sizes.run.answer_tokens, 1))
            yield f"  {cost} USD an hour, {million} USD a million tokens of answers"

    def _hourly(self, run: SimulatedRun) -> Interval | None:
        """Return dollars an hour, at the mean of the run."""
        if self._rent is None or not run.span_s:
            return None
        rent = self._rent
        one = _interval(rent) if isinstance(rent, Money) else Interval.exactly(rent)
        return one.times(run.replica_s / run.span_s)

    # --- for programs ------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON knows it."""
        trace = self.trace
        means = {"requests": len(trace.requests), "span_s": trace.span_s, "rate": trace.rate}
        means |= {"prompt_mean": trace.prompt_mean, "answer_mean": trace.answer_mean}
        found = [
            {
                "routing": sizes.run.routing,
                "objective": [str(a) for a in aims],
                "replicas": sizes.replicas,
                "fewest": sizes.fewest,
                "most_needed": sizes.most_needed,
                "missed": [str(a) for a in sizes.missed],
            }
            for aims, sizes in self._least
        ]
        return {
            "schema": SCHEMA,
            "trace": {"source": trace.source, **means},
            "engine": self.engine.as_json(),
            "runs": [self._run_json(run, scaling) for run, scaling in self._runs],
            "least": found,
        }

    def _run_json(self, run: SimulatedRun, scaling: Autoscaling | None) -> dict[str, Any]:
        figures = {what: {f"p{p}": run.bounded(what, p).as_json() for p in PERCENTS} for what in FIGURES}
        cost = self._hourly(run)
        names = (
            "replicas",
            "routing",
            "hit_rate",
            "utilisation",
            "refused",
            "preempted",
            "steps",
            "span_s",
            "replica_s",
            "late_s",
        )
        return {
            **{name: getattr(run, name) for name in names},
            **figures,
            "answered": len(run.ttft),
            "overloaded": _overloaded(run),
            "usd_an_hour": cost.as_json() if cost else None,
            "autoscaling": asdict(scaling) | {"counts": [*run.counts]} if scaling else None,
        }


def _row(run: SimulatedRun, hourly: Interval | None) -> tuple[str, ...]:
    times = [
        shown(run.percentile(what, p)) if len(run.values(what)) else "-"
        for what in ("ttft", "tpot")
        for p in PERCENTS
    ]
    replicas = (
        f"{run.replicas:,}" if not run.counts else f"{run.replica_s / run.span_s:.1f} of {run.replicas}"
    )
    return (
        replicas,
        run.routing,
        *times,
        f"{run.hit_rate:.0%}" if run.hit_tokens else "-",
        f"{run.utilisation:.0%}",
        digits(hourly.mid) if hourly else "-",
    )


def _notes(run: SimulatedRun, scaling: Autoscaling | None) -> Iterator[str]:
    named = f"{_count(run.replicas, 'replica')}, {run.routing}"
    if _overloaded(run):
        yield f"{named}: overloaded; the last answer ends {_time(run.late_s)} after the last request came"
    if run.refused:
        yield f"{named}: {run.refused:,} requests are larger than a replica's KV cache, and are left out"
    if run.preempted:
        times = _count(run.preempted, "time")
        yield f"{named}: {times} an answer was interrupted, as the KV cache was full, and computed again"
    if scaling is not None:
        target = f"queue={scaling.queue:g}" if scaling.queue else f"utilisation={scaling.utilisation:g}"
        yield (
            f"{named}: autoscaling {scaling.least}..{scaling.most} by {target}, "
            f"{_count(len(run.counts) - 1, 'change')}, a start takes {_time(scaling.start_s)}"
        )


def _overloaded(run: SimulatedRun) -> bool:
    """Say whether work was left over: the last answer ends far later than those took that came first."""
    early = run.latency[: max(len(run.latency) // 4, 1)]
    return len(early) > 0 and run.late_s > max(_LATE * float(np.percentile(early, 95)), _SHARE * run.span_s)


def _doubt(engine: EngineModel) -> str:
    doubt = engine.time.doubt()
    return f"{doubt.low:.2f} to {doubt.high:.2f} times as long"


def _interval(money: Money) -> Interval:
    return Interval(money.low, money.mid, money.high)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{digits(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
