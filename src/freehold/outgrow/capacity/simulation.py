"""Plays a trace against replicas of a simulated engine, with a routing policy, and autoscaling if that is asked.

Also finds the fewest replicas that meet an objective. Knows arrivals and replicas; what a step takes is the engine's.
Deterministic: the same trace gives the same figures.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Protocol

import numpy as np

from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.choose.advisor.interval import Interval, digits
from freehold.outgrow.capacity.engine import EngineModel, SimulatedEngine, SimulatedRequest
from freehold.outgrow.capacity.trace import RequestTrace
from freehold.outgrow.replicas.affinity import PrefixRing, pick

MOST_REPLICAS = 4096
WINDOWS = 20  # pieces of the trace that are drawn again for a figure's bounds
DRAWS = 200
# Times the p95 of the first quarter of answers, and of the whole time: a last answer that is later than both after the
# last arrival says that the replicas did not keep up.
_LATE, _SHARE = 3.0, 0.05
_EVERY = 500  # requests between two calls of `on_progress`


@dataclass(frozen=True)
class SimulatedRun:
    """What became of a trace. Arrays have an entry for each answered request, in the order of arrival."""

    replicas: int  # at the most, at one time
    routing: str
    at: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray  # nan for an answer of one token
    latency: np.ndarray  # to the last token
    prompt_tokens: int
    answer_tokens: int
    hit_tokens: int  # of prompts, that a prefix cache had
    refused: int  # larger than an engine's memory
    preempted: int
    steps: int
    span_s: float  # from the first arrival to the last token
    busy_s: float  # of all replicas together
    replica_s: float  # seconds that replicas were paid for
    late_s: float  # from the last arrival to the last token: far more than one answer takes means overload
    scaling: Autoscaling | None = None
    counts: tuple[tuple[float, int], ...] = ()  # of `scaling`: moment, and replicas paid for from then on

    def values(self, what: str) -> np.ndarray:
        """Return the figures of one kind: ttft, tpot, latency."""
        figures = getattr(self, what)
        return figures[~np.isnan(figures)]

    def percentile(self, what: str, percent: float) -> float:
        """Return a percentile; 0 where there is no figure."""
        figures = self.values(what)
        return float(np.percentile(figures, percent)) if len(figures) else 0.0

    def bounded(self, what: str, percent: float) -> Interval:
        """Return a percentile with the bounds that another hour of the same traffic may give (a block bootstrap)."""
        mid, figures = self.percentile(what, percent), getattr(self, what)
        if len(figures) < 2 * WINDOWS:
            return Interval(0.0, mid, math.inf)
        parts = [p[~np.isnan(p)] for p in np.array_split(figures, WINDOWS)]
        dice = np.random.default_rng(1)
        drawn = []
        for _ in range(DRAWS):
            sample = np.concatenate([parts[i] for i in dice.integers(0, WINDOWS, WINDOWS)])
            drawn.append(np.percentile(sample, percent) if len(sample) else 0.0)
        low, high = np.percentile(drawn, (10, 90))
        return Interval(min(float(low), mid), mid, max(float(high), mid))

    @property
    def hit_rate(self) -> float:
        """The part of all prompt tokens that a prefix cache had."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def utilisation(self) -> float:
        """The busy part of the replicas' time."""
        return self.busy_s / self.replica_s if self.replica_s else 0.0

    @property
    def overloaded(self) -> bool:
        """Whether work was left over: the last answer ends far later than those took that came first."""
        early = self.latency[: max(len(self.latency) // 4, 1)]
        slow = max(_LATE * float(np.percentile(early, 95)), _SHARE * self.span_s) if len(early) else math.inf
        return self.late_s > slow


@dataclass
class _Fleet:
    """Replicas by id, those that take requests, and what they cost."""

    model: EngineModel
    block: int
    engines: dict[int, SimulatedEngine] = field(default_factory=dict)
    active: list[int] = field(default_factory=list)
    starting: list[int] = field(default_factory=list)
    since: dict[int, float] = field(default_factory=dict)
    until: dict[int, float] = field(default_factory=dict)
    draining: set[int] = field(default_factory=set)

    def start(self, now: float, ready_at: float) -> None:
        number = len(self.engines)
        self.engines[number] = SimulatedEngine(self.model, self.block, ready_at)
        self.since[number] = now
        (self.active if ready_at <= now else self.starting).append(number)

    def wake(self, now: float) -> None:
        """Let those that have started take requests."""
        for number in [n for n in self.starting if self.engines[n].ready_at <= now]:
            self.starting.remove(number)
            self.active.append(number)

    def fewer(self, count: int, now: float) -> None:
        """Drain `count` replicas: first those that are starting, then the newest."""
        for number in [*reversed(self.starting), *reversed(self.active)][:count]:
            if number in self.starting:
                self.starting.remove(number)
                self.until[number] = now
            elif len(self.active) > 1:
                self.active.remove(number)
                self.draining.add(number)

    def load(self, number: int, now: float) -> int:
        engine = self.engines[number]
        if engine.clock < now:
            engine.run(now)
        return engine.outstanding

    def settle(self, now: float) -> None:
        """Note when those that drain have ended their last answer."""
        for number in list(self.draining):
            if not self.load(number, now):
                self.draining.remove(number)
                self.until[number] = max(self.engines[number].clock, self.since[number])

    @property
    def paid(self) -> int:
        return len(self.active) + len(self.starting) + len(self.draining)


class _Look:
    """Autoscaling's looks at the fleet, one after another."""

    def __init__(self, scaling: Autoscaling, fleet: _Fleet) -> None:
        self.scaling, self._fleet = scaling, fleet
        self._wanted: deque[tuple[float, int]] = deque()
        self._busy = 0.0
        self.next = scaling.every_s
        self.counts = [(0.0, fleet.paid)]

    def take(self) -> None:
        now, fleet, scaling = self.next, self._fleet, self.scaling
        self.next += scaling.every_s
        fleet.wake(now)
        fleet.settle(now)
        outstanding = sum(fleet.load(i, now) for i in fleet.active)
        busy = sum(e.busy_s for e in fleet.engines.values())
        share, self._busy = (busy - self._busy) / scaling.every_s, busy
        running = len(fleet.active)
        self._wanted.append((now, scaling.wanted(running, outstanding, share)))
        while self._wanted[0][0] < now - scaling.settle_s:
            self._wanted.popleft()
        have = running + len(fleet.starting)
        newest = self._wanted[-1][1]
        lasting = max(w for _, w in self._wanted)
        for _ in range(newest - have):
            fleet.start(now, now + scaling.start_s)
        if lasting < have and now >= scaling.settle_s:
            fleet.fewer(have - lasting, now)
        if fleet.paid != self.counts[-1][1]:
            self.counts.append((now, fleet.paid))


def simulate(
    trace: RequestTrace,
    model: EngineModel,
    replicas: int = 1,
    *,
    routing: str = "least-loaded",
    scaling: Autoscaling | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> SimulatedRun:
    """Play `trace` against `replicas` engines; with `scaling` from its least number up.

    `on_progress` is given the done part, 0 to 1; what it raises ends the simulation. Raises UsageError.
    """
    count = scaling.least if scaling else replicas
    if not 1 <= count <= MOST_REPLICAS:
        raise UsageError(f"{count:,} replicas are not within 1..{MOST_REPLICAS:,}")
    fleet = _Fleet(model, trace.block)
    for _ in range(count):
        fleet.start(0.0, 0.0)
    look = _Look(scaling, fleet) if scaling else None
    requests = _arrive(trace, fleet, policy(routing), look, on_progress)
    for number, engine in fleet.engines.items():
        if number not in fleet.until:
            engine.run(math.inf)
    return _run(trace, requests, fleet, look, routing)


def _arrive(
    trace: RequestTrace,
    fleet: _Fleet,
    chosen: RoutingPolicy,
    look: _Look | None,
    on_progress: Callable[[float], None] | None,
) -> list[SimulatedRequest]:
    requests: list[SimulatedRequest] = []
    now = 0.0

    def load(number: int) -> int:
        return fleet.load(number, now)

    for order, traced in enumerate(trace.requests):
        if on_progress is not None and order % _EVERY == 0:
            on_progress(order / len(trace.requests))
        now = traced.at
        while look is not None and look.next <= now:
            look.take()
        if fleet.starting:
            fleet.wake(now)
        number = chosen.choose(traced.blocks, fleet.active, load)
        engine = fleet.engines[number]
        engine.run(now)
        if engine.takes(traced):
            request = SimulatedRequest.of(traced, order)
            engine.submit(request)
            requests.append(request)
    return requests


def _run(
    trace: RequestTrace,
    requests: Sequence[SimulatedRequest],
    fleet: _Fleet,
    look: _Look | None,
    routing: str,
) -> SimulatedRun:
    engines = fleet.engines.values()
    end = max((r.last for r in requests), default=0.0)
    paid = sum(fleet.until.get(n, max(end, s)) - s for n, s in fleet.since.items())
    last = trace.requests[-1].at
    return SimulatedRun(
        replicas=max(c for _, c in look.counts) if look else len(engines),
        routing=routing,
        at=np.array([r.at for r in requests]),
        ttft=np.array([r.ttft for r in requests]),
        tpot=np.array([r.tpot for r in requests]),
        latency=np.array([r.last - r.at for r in requests]),
        prompt_tokens=sum(r.prompt for r in requests),
        answer_tokens=sum(r.answer for r in requests),
        hit_tokens=sum(r.hit for r in requests),
        refused=len(trace.requests) - len(requests),
        preempted=sum(e.preempted for e in engines),
        steps=sum(e.steps for e in engines),
        span_s=end,
        busy_s=sum(e.busy_s for e in engines),
        replica_s=paid,
        late_s=max(end - last, 0.0),
        scaling=look.scaling if look else None,
        counts=tuple(look.counts) if look else (),
    )


# --- autoscaling as a policy that the simulator tries -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Replicas by what each has: `queue` outstanding requests, or `utilisation`, the busy share of its time."""

    least: int
    most: int
    queue: float = 0.0
    utilisation: float = 0.0
    every_s: float = 15.0
    start_s: float = 120.0  # until a new replica answers; it is paid for from the start
    settle_s: float = 300.0  # it takes fewer only where no look in so long wanted more

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(f"{self.least} to {self.most} replicas are not a range", "give --replicas 1..8")
        if (self.queue > 0) == (self.utilisation > 0) or self.utilisation > 1:
            raise UsageError(
                "autoscaling has one target: outstanding requests a replica, or the busy share of its time",
                "such as --autoscale queue=16 or --autoscale utilisation=0.7",
            )
        if self.every_s <= 0 or self.start_s < 0 or self.settle_s < 0:
            raise UsageError("autoscaling looks every few seconds, and starts take 0 s or more")

    def wanted(self, running: int, outstanding: int, busy: float) -> int:
        """Return how many replicas are wanted; `busy`: busy seconds of all, over the seconds since the last look."""
        need = outstanding / self.queue if self.queue else busy / self.utilisation
        # A replica that is always busy says nothing of how much more is waiting.
        if self.utilisation and running and busy >= 0.99 * running:
            need = max(need, running + 1)
        return min(max(math.ceil(need - 1e-9), self.least), self.most)


# --- which replica a simulated request goes to: in turn, the least loaded, or the one that knows its beginning --------

KEY_BLOCKS = 3  # of a prompt's beginning that decide where it goes; fewer are often one system prompt


class RoutingPolicy(Protocol):
    """Chooses among replicas."""

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the id of the replica, one of `ids`, that a request whose prompt has these blocks goes to.

        `load(i)` is how many requests replica i has.
        """
        ...


class RoundRobin:
    """In turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the next one."""
        self._next += 1
        return ids[(self._next - 1) % len(ids)]


class LeastLoaded:
    """To the one with the fewest outstanding requests, in turn among equals."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the least loaded."""
        self._turn += 1
        turn, count = self._turn, len(ids)
        best, least = ids[0], None
        for n in range(count):
            i = ids[(n + turn) % count]
            have = load(i)
            if least is None or have < least:
                best, least = i, have
        return best


class PrefixAffinity:
    """To the replica whose place on the ring a beginning hashes to, unless it is too busy: what a deployment does."""

    def __init__(self) -> None:
        self._ids: tuple[int, ...] = ()
        self._ring = PrefixRing()
        self._last: dict[int, float] = {}
        self._turn = 0

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the ring's choice among `ids`; without blocks the least loaded."""
        if self._ids != tuple(ids):
            self._ids, self._ring = tuple(ids), PrefixRing(ids)
        key = None  # where nothing is known of a prompt's beginning
        if blocks:
            begins = ",".join(map(str, blocks[:KEY_BLOCKS])).encode()
            key = int.from_bytes(blake2b(begins, digest_size=8).digest())
        number = pick(self._ring, key, {i: load(i) for i in ids}, lambda i: self._last.get(i, 0.0))
        assert number is not None
        self._turn += 1
        self._last[number] = self._turn
        return number


POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix": PrefixAffinity,
}


def policy(name: str) -> RoutingPolicy:
    """Return a new policy. Raises UsageError with the nearest name."""
    if name in POLICIES:
        return POLICIES[name]()
    raise UsageError(f"no routing named {name!r}", suggestion(name, list(POLICIES)))


# --- objectives in words (ttft-p95=2s), and the fewest replicas that meet them --------------------------
# The search is made with the step times as they are, and again at both ends of their doubt: the number has a range.

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
            raise UsageError(
                f"no figure named {match[1]!r}",
                suggestion(match[1], FIGURES),
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
        search = replace(middle, model=other, runs={})
        bounds.append(rate if factor == 1.0 else search.least(start=rate or most))
    run = middle.runs[rate if rate is not None else most]
    missed = tuple(aim for aim in aims if not aim.met(run))
    tried = tuple(sorted(middle.runs.items()))
    return ReplicaSearch(tuple(aims), rate, bounds[0], bounds[1], run, missed, tried)


@dataclass
class _Search:
    trace: RequestTrace
    model: EngineModel
    aims: Sequence[Aim]
    routing: str
    most: int
    on_progress: Callable[[str], None] | None
    runs: dict[int, SimulatedRun] = field(default_factory=dict)

    def least(self, start: int = 1) -> int | None:
        """Return the fewest, or None."""
        high = min(start, self.most)
        low = 0  # does not do
        while not self._does(high):
            if high >= self.most:
                return None
            low, high = high, min(2 * high, self.most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._does(middle) else (middle, high)
        return high

    def _does(self, count: int) -> bool:
        if count not in self.runs:

            def show(share: float) -> None:
                if self.on_progress:
                    self.on_progress(f"{count} replicas: {share:.0%} of the trace")

            self.runs[count] = simulate(self.trace, self.model, count, routing=self.routing, on_progress=show)
        return all(aim.met(self.runs[count]) for aim in self.aims)


def shown(seconds: float | Interval) -> str:
    """Write seconds for people: 1.82 s, 34.5 ms."""
    mid = seconds.mid if isinstance(seconds, Interval) else seconds
    unit, factor = ("s", 1.0) if mid >= 1 else ("ms", 1e3)
    if isinstance(seconds, Interval):
        return f"{seconds.times(factor)} {unit}"
    return f"{digits(seconds * factor)} {unit}"
