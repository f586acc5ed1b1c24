"""The engines at work, twice a second while they are looked at: streams, queues, latencies, cache, memory, deaths.

One task takes one look for all viewers and ends with the last of them; without a viewer nothing is computed. Figures
are those of /metrics: the engines' latest stats, and the histograms that answers fill. Knows who may see what; knows no
engine process and asks none.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import msgspec

from freehold._native import BLOCK_TOKENS
from freehold.base.machine import available_bytes
from freehold.base.serving import LoadedInfo
from freehold.base.version import __version__
from freehold.serve.http.core.answering import EventStream
from freehold.serve.http.core.call import HttpCall, Server
from freehold.serve.http.core.metrics import Histogram

EVERY_S = 0.5
ALL, OWNER = " all", " owner"  # viewers that see every stream; a key's name has no blank


class LiveFeed:
    """What viewers share: the latest look, in the bytes of each kind of viewer."""

    def __init__(self, server: Server) -> None:
        self._looks = Looks(server)
        self._viewers: dict[object, str] = {}  # each with the kind that it is
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Condition()
        self._events: dict[str, bytes] = {}
        self._number = 0

    @asynccontextmanager
    async def watch(self, kind: str) -> AsyncIterator[object]:
        """Count a viewer; the looks begin with the first."""
        viewer = object()
        self._viewers[viewer] = kind
        if self._task is None:
            self._events = {}  # of a time that is over
            self._task = asyncio.create_task(self._look())
        try:
            yield viewer
        finally:
            del self._viewers[viewer]
            if not self._viewers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def next(self, viewer: object, after: int) -> tuple[int, bytes]:
        """Return the number and the event of the first look after number `after`; what came between is skipped."""
        kind = self._viewers[viewer]
        async with self._ready:
            while self._number <= after or kind not in self._events:
                await self._ready.wait()
            return self._number, self._events[kind]

    async def _look(self) -> None:
        self._looks.begin()
        while True:
            began = time.monotonic()
            self._number += 1
            self._events = self._snapshot()
            async with self._ready:
                self._ready.notify_all()
            await asyncio.sleep(max(EVERY_S - (time.monotonic() - began), EVERY_S / 2))

    def _snapshot(self) -> dict[str, bytes]:
        """Take a look and write it for each kind of viewer; no token is passed on meanwhile."""
        look, events = self._looks.take(), {}
        for kind in set(self._viewers.values()):
            key = None if kind in (ALL, OWNER) else kind
            data = msgspec.json.encode(look.seen_by(key, owner=kind == OWNER))
            events[kind] = b"id: %d\nevent: state\ndata: %b\n\n" % (self._number, data)
        return events


async def live(call: HttpCall) -> None:
    """Stream the state of the engines as events `state`, two per second, until the client disconnects."""
    server = call.server
    feed = server.part(LiveFeed)
    if feed is None:
        feed = server.parts[LiveFeed] = LiveFeed(server)
    async with EventStream(call) as events:

        async def follow() -> None:
            async with feed.watch(_kind(call)) as viewer:
                number = 0
                while True:
                    number, event = await feed.next(viewer, number)
                    if not call.admitted(used=True):  # a hidden page closes its stream
                        break
                    await events.send(event)
            await events.send(b"", more=False)

        await call.while_here(follow())


def _kind(call: HttpCall) -> str:
    if call.owner:
        return OWNER
    return ALL if call.key is None or call.key.kind == "admin" else call.key.name


# --- one look at the server's engines and streams, and what of it each viewer sees ------------------
# Rates are the differences of two looks, recent percentiles those of a minute of looks.

# What they say is declared here: tools/console_types.py writes it in TypeScript, for the page.
RECENT_S = 60.0
QUANTILES = (0.5, 0.9, 0.99)


class Percentiles(TypedDict):
    """How many there were, and quantiles; seconds."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


class Latencies(TypedDict):
    """Of everything since the server started, and of the last minute while someone looks."""

    all: Percentiles
    recent: Percentiles | None


class LiveStream(TypedDict):
    """A request that is answered."""

    id: str  # the request's id, as in x-request-id
    model: str
    key: str  # "" without a key
    door: str  # console, openai, anthropic, ollama, batch, freehold
    state: Literal["waiting", "prefill", "decode"]
    prompt_tokens: int
    answer_tokens: int  # its position is prompt_tokens + answer_tokens
    tok_s: float | None
    age_s: float


class LiveCache(TypedDict):
    """A model's cache, in blocks and tokens."""

    block_tokens: int
    blocks: int
    live: int  # held by running sequences,
    shared: int  # and of those by several
    evictable: int  # kept for prefixes of later prompts
    free: int
    states: int  # of recurrent layers; 0: the model has none
    states_live: int
    states_cached: int
    hit_tokens: int  # of prompts, found in memory or on the disk,
    computed_tokens: int  # and all others
    disk_tokens: int


class DraftCounts(TypedDict):
    """Tokens that were drafted, and those of them that were accepted."""

    drafted: int
    accepted: int


class LiveDeath(TypedDict):
    """An end of an engine process."""

    at: float  # seconds since 1970
    cause: str


class LiveProcess(TypedDict):
    """An engine process."""

    pid: int
    rss: int
    cpu_s: float


class LiveEngine(TypedDict):
    """A model at work."""

    running: int
    in_flight: int
    tok_s: float | None  # generated a second, by the two latest looks
    prefill_tok_s: float | None
    ttft: Latencies
    itl: Latencies
    cache: LiveCache
    memory: dict[str, int]  # bytes by kind: weights, cache, ...; {} where the engine does not say
    memory_bytes: int
    context: int
    kv_tokens: int
    quantization: str
    threads: int
    load_s: float
    expires_at: float | None  # seconds since 1970, when it is unloaded if idle
    drafts: DraftCounts
    preemptions: int
    slow_readers: int
    restarts: int
    deaths: list[LiveDeath]  # the latest ones
    process: LiveProcess | None  # only for the owner


class LiveModel(TypedDict):
    """A model in memory, and its queue."""

    name: str
    waiting: int
    expected_wait_s: float
    full: LiveEngine | None  # null for a client key


class LiveLoading(TypedDict):
    """A model on its way into memory, in bytes."""

    name: str
    done: int
    total: int


class LiveMachine(TypedDict):
    """Bytes of the machine's memory."""

    memory: int
    free: int


class LiveState(TypedDict):
    """One look, as a viewer sees it."""

    at: float  # seconds since 1970
    version: str
    started_at: float
    streams: list[LiveStream]  # the caller's own; all of them for the owner
    models: list[LiveModel]
    loading: list[LiveLoading]
    machine: LiveMachine | None  # null for a client key
    troubles: list[str]  # of /health, such as a full disk


@dataclass(frozen=True, slots=True)
class Look:
    """What there is at one moment: everything."""

    state: LiveState
    allowed: Callable[[str, str], bool]  # key's name, model -> whether the key may use it

    def seen_by(self, key: str | None, *, owner: bool) -> LiveState:
        """Return of a client key its own streams and its models' queues, otherwise everything."""
        state = self.state
        if owner:
            return state
        if key is None:
            models: list[LiveModel] = [
                {**m, "full": {**m["full"], "process": None} if m["full"] else None} for m in state["models"]
            ]
            return {**state, "models": models}
        return {
            **state,
            "streams": [s for s in state["streams"] if s["key"] == key],
            "models": [{**m, "full": None} for m in state["models"] if self.allowed(key, m["name"])],
            "loading": [each for each in state["loading"] if self.allowed(key, each["name"])],
            "machine": None,
            "troubles": [],
        }


class Looks:
    """Takes looks; keeps what rates and recent percentiles are the differences of."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # model -> its counters in the last minute
        self._counts: dict[str, deque[tuple[float, dict[str, Any]]]] = {}

    def begin(self) -> None:
        """Forget earlier looks: a viewer came after a time without one."""
        self._counts.clear()

    def take(self) -> Look:
        """Look once."""
        server, now = self._server, time.monotonic()
        loaded = server.models.loaded()
        self._counts = {each.name: self._counted(each, now) for each in loaded}
        loading = server.models.loading().items()
        state: LiveState = {
            "at": time.time(),
            "version": __version__,
            "started_at": server.started_at,
            "loading": [{"name": name, "done": done, "total": total} for name, (done, total) in loading],
            "troubles": server.troubles(),
            "streams": _streams(server, now),
            "models": [self._model(each) for each in loaded],
            "machine": {"memory": _memory_bytes(), "free": available_bytes()},
        }
        return Look(state, self._allowed)

    def _allowed(self, key: str, model: str) -> bool:
        current = self._server.guard.keys.named(key)
        return current is not None and current.may_use(model)

    def _counted(self, each: LoadedInfo, now: float) -> deque[tuple[float, dict[str, Any]]]:
        record, stats = self._server.metrics.of(each.name), each.stats
        kept = self._counts.get(each.name, deque())
        counts = {
            "generated": stats.generated_tokens,
            "computed": stats.computed_tokens,
            "ttft": record.first.counts,
            "itl": record.gap.counts,
        }
        kept.append((now, counts))
        while now - kept[0][0] > RECENT_S:
            kept.popleft()
        return kept

    def _model(self, each: LoadedInfo) -> LiveModel:
        stats, info, record = each.stats, each.info, self._server.metrics.of(each.name)
        kept = self._counts[each.name]
        oldest = kept[0][1] if len(kept) > 1 else None
        full: LiveEngine = {
            "running": stats.running,
            "in_flight": each.in_flight,
            "tok_s": _rate(kept, "generated"),
            "prefill_tok_s": _rate(kept, "computed"),
            "ttft": _latencies(record.first, oldest["ttft"] if oldest else None),
            "itl": _latencies(record.gap, oldest["itl"] if oldest else None),
            "cache": _cache(each),
            "memory": _memory(each),
            "memory_bytes": info.memory_bytes,
            "context": info.context,
            "kv_tokens": info.kv_tokens,
            "quantization": info.quantization,
            "threads": info.threads,
            "load_s": info.load_s,
            "expires_at": each.expires_at,
            "drafts": {"drafted": stats.drafted_tokens, "accepted": stats.accepted_tokens},
            "preemptions": stats.preemptions,
            "slow_readers": each.slow_readers,
            "restarts": each.restarts,
            "deaths": [{"at": death.at, "cause": death.cause} for death in each.deaths],
            "process": _process(each.pid),
        }
        wait_s = stats.expected_wait_s
        return {"name": each.name, "waiting": stats.waiting, "expected_wait_s": wait_s, "full": full}


def _streams(server: Server, now: float) -> list[LiveStream]:
    rows: list[LiveStream] = []
    for call in server.calls:
        work = call.work
        if not work.model:
            continue
        state = "decode" if work.first_s is not None else "prefill" if work.prompt_tokens else "waiting"
        rows.append(
            {
                "id": call.request_id.decode(),
                "model": work.model,
                "key": call.tenant,
                "door": call.door,
                "state": state,
                "prompt_tokens": work.prompt_tokens,
                "answer_tokens": work.answer_tokens,
                "tok_s": work.tok_s,
                "age_s": now - call.started,
            }
        )
    return sorted(rows, key=lambda each: -each["age_s"])


def _cache(each: LoadedInfo) -> LiveCache:
    stats = each.stats
    return {
        "block_tokens": BLOCK_TOKENS,
        "blocks": stats.blocks,
        "live": stats.blocks_live,
        "shared": stats.blocks_shared,
        "evictable": stats.blocks_cached,
        "free": stats.blocks - stats.blocks_live - stats.blocks_cached,
        "states": stats.states,
        "states_live": stats.states_live,
        "states_cached": stats.states_cached,
        "hit_tokens": stats.cached_tokens,
        "computed_tokens": stats.computed_tokens,
        "disk_tokens": stats.disk_tokens,
    }


def _memory(each: LoadedInfo) -> dict[str, int]:
    """Split a model's memory by kind; empty where its engine does not say what its cache takes."""
    info, stats = each.info, each.stats
    if not info.cache_bytes:
        return {}
    states, adapters = stats.states * stats.state_bytes, sum(a.memory_bytes for a in info.adapters)
    kinds = {
        "weights": info.memory_bytes - info.cache_bytes - adapters,
        "cache": info.cache_bytes - states,
        "states": states,
        "adapters": adapters,
    }
    return {kind: count for kind, count in kinds.items() if count}


def _process(pid: int) -> LiveProcess | None:
    if not pid:
        return None
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            used = process.cpu_times()
            return {"pid": pid, "rss": process.memory_info().rss, "cpu_s": used.user + used.system}
    return None


def _memory_bytes() -> int:
    import psutil

    return psutil.virtual_memory().total


def _rate(kept: deque[tuple[float, dict[str, Any]]], name: str) -> float | None:
    """Return what came a second between the two latest looks."""
    if len(kept) < 2:
        return None
    (then, before), (now, after) = kept[-2], kept[-1]
    return max(after[name] - before[name], 0) / (now - then) if now > then else None


# --- percentiles ----------------------------------------------------------------------------------------


def _latencies(histogram: Histogram, before: Sequence[int] | None) -> Latencies:
    counts = histogram.counts
    recent = None if before is None else [now - then for now, then in zip(counts, before, strict=True)]
    return {
        "all": percentiles(histogram.bounds, counts),
        "recent": percentiles(histogram.bounds, recent) if recent else None,
    }


def percentiles(bounds: Sequence[float], counts: Sequence[int]) -> Percentiles:
    """Return the count and the quantiles of a histogram, as Prometheus' histogram_quantile estimates them."""
    total = sum(counts)
    p50, p90, p99 = (quantile(bounds, counts, q) if total else None for q in QUANTILES)
    return {"count": total, "p50": p50, "p90": p90, "p99": p99}


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float:
    """Interpolate within the bucket that holds the share `q`; beyond the last bound there is only that bound."""
    rank, below = q * sum(counts), 0
    for i, count in enumerate(counts[:-1]):
        if below + count >= rank and count:
            low = bounds[i - 1] if i else 0.0
            return low + (bounds[i] - low) * (rank - below) / count
        below += count
    return bounds[-1]
