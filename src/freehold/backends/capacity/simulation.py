"""Plays a trace against replicas of a simulated engine, with a routing policy, and autoscaling if that is asked.

Knows arrivals and replicas; what a step takes is the engine's. Deterministic: the same trace gives the same figures.
Path: objective.least, reports/capacity.py -> simulate -> SimulatedRun
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

import numpy as np

from freehold.advisor.interval import Interval
from freehold.backends.capacity.engine import SimulatedEngine, SimulatedRequest
from freehold.backends.capacity.steptime import EngineModel
from freehold.backends.capacity.trace import RequestTrace
from freehold.backends.replicas.affinity import PrefixRing, pick
from freehold.config import nearest
from freehold.errors import UsageError

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
            request = SimulatedRequest(traced, order)
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
# How many replicas are wanted, looked at again and again.


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


# --- which replica a simulated request goes to ------------------------------------------------------
# In turn, to the least loaded, or to the one that knows its beginning.

KEY_BLOCKS = 3  # of a prompt's beginning that decide where it goes; fewer are often one system prompt


class RoutingPolicy(Protocol):
    """Chooses among `count` replicas; `load(i)` is how many requests the i-th has."""

    def choose(self, blocks: Sequence[int], ids: Sequence[int], load: Callable[[int], int]) -> int:
        """Return the id of the replica, one of `ids`, that a request whose prompt has these blocks goes to."""
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
        number = pick(self._ring, _key(blocks), {i: load(i) for i in ids}, lambda i: self._last.get(i, 0.0))
        assert number is not None
        self._turn += 1
        self._last[number] = self._turn
        return number


def _key(blocks: Sequence[int]) -> int | None:
    """Return the key of a prompt's beginning; None where nothing is known of it."""
    if not blocks:
        return None
    return int.from_bytes(blake2b(",".join(map(str, blocks[:KEY_BLOCKS])).encode(), digest_size=8).digest())


POLICIES: dict[str, Callable[[], RoutingPolicy]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix": PrefixAffinity,
}


def policy(name: str) -> RoutingPolicy:
    """Return a new policy. Raises UsageError with the nearest name."""
    if name in POLICIES:
        return POLICIES[name]()
    near = nearest(name, list(POLICIES))
    raise UsageError(
        f"no routing named {name!r}", f"did you mean {near}?" if near else f"known: {', '.join(POLICIES)}"
    )
