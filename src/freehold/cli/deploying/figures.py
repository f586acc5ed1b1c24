"""What `freehold deploy capacity` prints: a table of runs, the fewest replicas, cost.

Knows words; the figures are reports/capacity.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from freehold.base.catalog.hardware import Rig
from freehold.choose.advisor.interval import Interval, digits
from freehold.outgrow.capacity.simulation import ReplicaSearch, SimulatedRun, shown
from freehold.outgrow.planning.printed import sizes
from freehold.serve.reports.capacity import PERCENTS, Capacity

HEAD = ("REPLICAS", "ROUTING", "TTFT p50", "p95", "p99", "TPOT p50", "p95", "p99", "HIT", "BUSY", "USD/h")
_ABOUT = ("model", "quant", "hardware", "engine")


def lines(capacity: Capacity) -> Iterator[str]:
    """Yield the lines of the page."""
    trace, engine = capacity.trace, capacity.engine
    yield (
        f"{trace.source}: {_count(len(trace.requests), 'request')} in {_time(trace.span_s)}, {digits(trace.rate)}/s, "
        f"{trace.prompt_mean:,.0f} + {trace.answer_mean:,.0f} tokens"
    )
    doubt = engine.time.doubt()
    about = ", ".join(str(v) for v in map(engine.about.get, _ABOUT) if v)
    yield f"{about or 'engine'}: {engine.time.basis}; a step may take {doubt.low:.2f} to {doubt.high:.2f} times as long"
    yield from _plan(capacity)
    yield from _table([HEAD, *(_row(run, capacity.hourly(run)) for run in capacity.runs)])
    for run in capacity.runs:
        yield from _notes(run)
    by_prefix = any(run.routing == "prefix" for run in capacity.runs)
    if by_prefix and not any(r.blocks for r in trace.requests):
        yield "prefix: the trace has no hashes of blocks, so no prompt begins as another one"
    for search in capacity.least:
        yield from _least(capacity, search)


def _plan(capacity: Capacity) -> Iterator[str]:
    """Say what each replica is, and what prints its flags."""
    plan, limits = capacity.plan, capacity.engine.limits
    if plan is None:
        return
    where = f"{sizes(plan.sizes)}, {limits.streams:,} requests at a time, a cache of {limits.room:,} tokens"
    model = plan.model.source if plan.model.base else plan.model.name
    hardware = f"--on {plan.nodes.rig.name}" + (
        f" --nodes {plan.nodes.count}" if plan.nodes.count > 1 else ""
    )
    words = f"freehold deploy {model} {hardware} --engine {plan.engine} --streams {plan.streams} --replicas 1"
    yield f"a replica: {where}; {words} --dry-run prints its flags"
    used, rented = plan.sizes.devices, plan.nodes.rig.count * plan.nodes.count
    if used < rented:
        fitting = Rig(plan.nodes.rig.device, used).name
        yield f"a replica uses {used} of {rented} devices and is billed for all: --on {fitting} fits it"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _least(capacity: Capacity, search: ReplicaSearch) -> Iterator[str]:
    aims, run = ", ".join(map(str, search.aims)), search.run
    if search.replicas is None:
        missed = ", ".join(
            f"{a.figure}-p{a.percent:g} is {shown(run.percentile(a.figure, a.percent))}"
            for a in search.missed
        )
        yield f"{run.routing}: {_count(run.replicas, 'replica')} cannot keep {aims}: {missed}"
        return
    low, high = search.fewest or search.replicas, search.most_needed
    bounds = f"{low} to {high if high is not None else 'more than was tried'}"
    bounds = "no other number" if low == high else bounds
    count = _count(search.replicas, "replica")
    yield f"{run.routing}: {count} for {aims} ({bounds} given the uncertainty of the step times)"
    for aim in search.aims:
        value = shown(run.bounded(aim.figure, aim.percent))
        yield f"  {aim.figure}-p{aim.percent:g}: {value}, if future traffic resembles this trace"
    if cost := capacity.hourly(run):
        million = cost.times(1e6 * run.span_s / 3600 / max(run.answer_tokens, 1))
        yield f"  {cost} USD an hour, {million} USD a million tokens of answers"


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


def _notes(run: SimulatedRun) -> Iterator[str]:
    named = f"{_count(run.replicas, 'replica')}, {run.routing}"
    if run.overloaded:
        yield f"{named}: overloaded; the last answer ends {_time(run.late_s)} after the last request came"
    if run.refused:
        yield f"{named}: {run.refused:,} requests are larger than a replica's KV cache, and are left out"
    if run.preempted:
        times = _count(run.preempted, "time")
        yield f"{named}: {times} an answer was interrupted, as the KV cache was full, and computed again"
    if (scaling := run.scaling) is not None:
        target = f"queue={scaling.queue:g}" if scaling.queue else f"utilisation={scaling.utilisation:g}"
        yield (
            f"{named}: autoscaling {scaling.least}..{scaling.most} by {target}, "
            f"{_count(len(run.counts) - 1, 'change')}, a start takes {_time(scaling.start_s)}"
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{digits(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
