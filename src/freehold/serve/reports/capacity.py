"""How many replicas a load takes: requests, an engine's step times, and the simulated runs that were asked for.

    found = deploy_capacity("qwen3:8b", on="h100", rate=20, objective="ttft-p95=2s,tpot-p95=50ms")
    found.least[0].replicas, found.runs[0].percentile("ttft", 95), found.as_json()

Knows where requests and step times come from; the simulation is outgrow/capacity/. Prints nothing.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from freehold.base.catalog.hardware import Money, Rig
from freehold.base.config import Settings, check_names, load_settings
from freehold.base.errors import UsageError
from freehold.choose.advisor.interval import Interval
from freehold.outgrow.capacity import trace as traces
from freehold.outgrow.capacity.engine import EngineModel, of_plan
from freehold.outgrow.capacity.simulation import (
    FIGURES,
    POLICIES,
    Autoscaling,
    ReplicaSearch,
    SimulatedRun,
    least,
    parse,
    policy,
    simulate,
)
from freehold.outgrow.capacity.trace import RequestTrace
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.options import CapacityOptions, DeployOptions
from freehold.outgrow.planning.options import planned
from freehold.outgrow.planning.printed import as_dict
from freehold.serve.reports.gateway_file import ledger_file

SCHEMA = 1
PERCENTS = (50, 95, 99)
STEADY_S = 600.0  # of requests at a rate
_RUN = (
    *("replicas", "routing", "hit_rate", "utilisation", "refused", "preempted", "steps"),
    *("span_s", "replica_s", "late_s"),
)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was simulated."""

    trace: RequestTrace
    engine: EngineModel  # one replica
    rent: Money | float | None  # dollars an hour of a replica; None: not known
    runs: tuple[SimulatedRun, ...]  # for each policy: those next to its answer, then those of `replicas`
    least: tuple[ReplicaSearch, ...]  # with an objective: the fewest replicas, for each routing policy
    plan: DeployPlan | None = None  # of one replica, where its steps are predicted

    def hourly(self, run: SimulatedRun) -> Interval | None:
        """Return what a run's replicas cost, in dollars an hour at its mean; None where the rent is not known."""
        if self.rent is None or not run.span_s:
            return None
        rent = self.rent
        one = Interval(rent.low, rent.mid, rent.high) if isinstance(rent, Money) else Interval.exactly(rent)
        return one.times(run.replica_s / run.span_s)

    def as_json(self) -> dict[str, Any]:
        """Return what `freehold deploy capacity --json` prints; times are in seconds."""
        trace = self.trace
        means = {"requests": len(trace.requests), "span_s": trace.span_s, "rate": trace.rate}
        means |= {"prompt_mean": trace.prompt_mean, "answer_mean": trace.answer_mean}
        return {
            "schema": SCHEMA,
            "trace": {"source": trace.source, **means},
            "engine": self.engine.as_json(),
            "plan": as_dict(self.plan) if self.plan else None,
            "runs": [self._run_json(run) for run in self.runs],
            "least": [_least_json(sizes) for sizes in self.least],
        }

    def _run_json(self, run: SimulatedRun) -> dict[str, Any]:
        figures = {what: {f"p{p}": run.bounded(what, p).as_json() for p in PERCENTS} for what in FIGURES}
        cost = self.hourly(run)
        return {
            **{name: getattr(run, name) for name in _RUN},
            **figures,
            "answered": len(run.ttft),
            "overloaded": run.overloaded,
            "usd_an_hour": cost.as_json() if cost else None,
            "autoscaling": asdict(run.scaling) | {"counts": [*run.counts]} if run.scaling else None,
        }


def _least_json(sizes: ReplicaSearch) -> dict[str, Any]:
    return {
        "routing": sizes.run.routing,
        "objective": [str(a) for a in sizes.aims],
        "replicas": sizes.replicas,
        "fewest": sizes.fewest,
        "most_needed": sizes.most_needed,
        "missed": [str(a) for a in sizes.missed],
    }


def deploy_capacity(
    model: str = "",
    *,
    settings: Settings | None = None,
    on_progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Capacity:
    """Simulate replicas of an engine under a load: first tokens, pace, cache hits, cost. Starts nothing.

    `options`: those of `freehold deploy capacity`. The requests come from `trace` (a CSV or JSON-lines file), from
    `ledger=True` or `ledger_file`, or from `rate` (per second, with `prompt` and `max_tokens`, for `seconds`). The step
    times come from `steps` (the result of deploy_bench, or its file), or are predicted for `model` `on` hardware such
    as "4xh100", with `engine` and `quant`. `objective="ttft-p95=2s,tpot-p95=50ms"` finds the smallest number of
    replicas; `replicas=4` or "1..8" simulates these numbers. Further options: `routing`, `autoscale="queue=16"`,
    `start_time` (s), `faster`, `rent` (dollars per hour), `streams`, `room` and `chunk` (tokens). The result has `runs`
    (percentiles in seconds), `least` (replicas, and their range), and `as_json`. Raises UsageError for an invalid
    simulation or a model that does not fit; ModelNotFound.
    """
    check_names(options, [each.name for each in fields(CapacityOptions) if each.name != "model"])
    return simulated(
        settings or load_settings(), CapacityOptions(model, **options), on_progress or (lambda line: None)
    )


def simulated(settings: Settings, options: CapacityOptions, show: Callable[[str], None]) -> Capacity:
    """Simulate what was asked for; `show` gets lines of progress."""
    aims = parse(options.objective) if options.objective else ()
    routings, scaling = _routings(options.routing), _scaling(options)
    trace = _requests_of(settings, options)
    engine, rent, plan = _engine_of(settings, options, trace)
    first, last = _range(options.replicas) if options.replicas else (1, 0 if aims else 1)
    runs: list[SimulatedRun] = []
    searches: list[ReplicaSearch] = []
    for routing in routings:

        def part(share: float, routing: str = routing) -> None:
            show(f"{routing}: {share:.0%} of the trace")

        if scaling is not None:
            runs.append(simulate(trace, engine, routing=routing, scaling=scaling, on_progress=part))
            continue
        if aims:
            search = least(trace, engine, aims, routing=routing, on_progress=show)
            searches.append(search)
            runs += [run for count, run in search.tried if 0 <= search.run.replicas - count <= 1]
        runs += [
            simulate(trace, engine, count, routing=routing, on_progress=part)
            for count in range(first, last + 1)
        ]
    return Capacity(trace, engine, rent, tuple(runs), tuple(searches), plan)


# --- the requests --------------------------------------------------------------------------------------------


def _requests_of(settings: Settings, options: CapacityOptions) -> RequestTrace:
    """Return the requests of the one place that was named. Raises UsageError."""
    places = {
        "--trace": options.trace,
        "--ledger": options.ledger or options.ledger_file,
        "--rate": options.rate,
    }
    sources = [place for place, value in places.items() if value]
    if len(sources) != 1:
        raise UsageError(
            f"requests come from one place, not from {' and '.join(sources)}"
            if sources
            else "which requests?",
            "give --trace FILE, --ledger, or --rate 2 --prompt 1024 --max-tokens 256",
        )
    if options.rate:
        sizes = options.rate, options.prompt, options.max_tokens
        trace = traces.steady(
            *sizes, seconds=STEADY_S if options.seconds is None else options.seconds, vary=options.vary
        )
    else:
        trace = _stated(settings, options)
        trace = trace if options.seconds is None else trace.first(options.seconds)
    return trace if options.faster == 1 else trace.faster(options.faster)


def _stated(settings: Settings, options: CapacityOptions) -> RequestTrace:
    if isinstance(options.trace, RequestTrace):
        return options.trace
    if options.trace:
        return traces.from_file(Path(options.trace))
    from freehold.route.router.ledger.rows import rows_in

    path = ledger_file(settings, Path(options.ledger_file) if options.ledger_file else None)
    now = time.time()
    rows = (
        (row.at, row.usage.prompt_tokens, row.usage.completion_tokens)
        for row in rows_in(path, now - options.since, now)
        if row.usage.completion_tokens and not row.parent
    )
    return traces.from_rows(rows, f"ledger {path.name}")


# --- the engine ----------------------------------------------------------------------------------------------


def _engine_of(
    settings: Settings, options: CapacityOptions, trace: RequestTrace
) -> tuple[EngineModel, Money | float | None, DeployPlan | None]:
    """Return an engine's step times and limits, what a replica costs an hour, and its plan. Raises UsageError."""
    if bool(options.steps) == bool(options.on):
        raise UsageError(
            "what a step takes comes from one place: --steps FILE, or MODEL --on HARDWARE",
            "freehold deploy bench -o FILE measures a running engine",
        )
    rent: Money | float | None = options.rent
    if options.rent is not None and not 0 <= options.rent < math.inf:
        raise UsageError(f"--rent {options.rent:g} is not a price", "give dollars an hour, such as 2.50")
    if options.steps and (options.model or options.engine or options.quant):
        raise UsageError(
            "--steps has its own model, engine and quantisation", "leave out MODEL, --engine and --quant"
        )
    plan: DeployPlan | None = None
    if isinstance(options.steps, EngineModel):
        engine = options.steps
    elif options.steps:
        engine = EngineModel.load(Path(options.steps))
    else:
        if not options.model:
            raise UsageError(
                "--on needs a MODEL", "such as freehold deploy capacity qwen3:32b --on 4xh100 --rate 2"
            )
        # What `freehold deploy` would start on this hardware as one replica: its cache and streams are played.
        wanted: dict[str, Any] = {
            "on": options.on,
            "engine": options.engine or "auto",
            "quant": options.quant,
        }
        plan = planned(
            settings, DeployOptions(options.model, **wanted, streams=options.streams or 0, replicas=1)
        )
        prompt, answer = round(trace.prompt_mean), round(trace.answer_mean)
        engine = of_plan(plan, prompt=prompt, answer=answer)
        rented = Rig(plan.nodes.rig.device, plan.nodes.rig.count * plan.nodes.count).rent
        rent = rented if rent is None else rent
    overrides = {"streams": options.streams, "room": options.room, "chunk": options.chunk}
    limits = {name: value for name, value in overrides.items() if value}
    return replace(engine, limits=replace(engine.limits, **limits)), rent, plan


# --- what is played ------------------------------------------------------------------------------------------


def _routings(text: str) -> list[str]:
    names = [*POLICIES] if text == "all" else [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        policy(name)
    return names or ["least-loaded"]


def _range(replicas: int | str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", str(replicas).strip())
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else 0
    if not 1 <= first <= last <= 1024:
        raise UsageError(f"--replicas {replicas} is not within 1..1,024", "write 4, or 1..8 for a range")
    return first, last


def _scaling(options: CapacityOptions) -> Autoscaling | None:
    if not options.autoscale:
        return None
    if options.objective:
        raise UsageError("--autoscale and --objective are two questions", "leave out one of them")
    match = re.fullmatch(r"(queue|utilisation)=(\d+(?:\.\d+)?)", options.autoscale.strip())
    if match is None:
        raise UsageError(
            f"--autoscale {options.autoscale} is not a policy", "write queue=16 or utilisation=0.7"
        )
    first, last = _range(options.replicas or "1..8")
    return Autoscaling(first, last, **{match[1]: float(match[2])}, start_s=options.start_time)
