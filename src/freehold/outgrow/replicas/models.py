"""The models of a server with deployments: those of its own engine, and those that engines beyond it answer.

Around the server's own manager. A deployment's name is one name for all its replicas, in every API, and hides a stored
model of the same name. Counters have a `replica` label and outlive restarts. Knows names; knows no wire and no process.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from freehold.base import private
from freehold.base.errors import (
    EngineClosed,
    EngineLost,
    FreeholdError,
    ModelNotFound,
    UnsupportedModel,
    UsageError,
)
from freehold.base.platforms import SOCKET_PATH_BYTES
from freehold.base.serving import (
    Begin,
    CounterTable,
    DelegatingHandle,
    EmbedJob,
    EngineStats,
    EstimatedCount,
    Job,
    LoadedInfo,
    ModelHandle,
    ModelInfo,
    ModelManager,
    Origin,
    SpeechJob,
    SpeechSource,
    SpeechStream,
    StoredModel,
    Stream,
    TokenizerFace,
    Vectors,
    reads_text,
)
from freehold.base.types import Chunk, Message, SamplingParams, Turn
from freehold.outgrow.contract import DeploymentRow, DeployPlan, EngineDriver, named
from freehold.outgrow.drivers import driver_of
from freehold.outgrow.process.supervisor import end_left, temporary_prefix
from freehold.outgrow.replicas.calls import EngineCalls, abilities_of
from freehold.outgrow.replicas.deployment import ReplicaSet, pictures_of, without_pictures
from freehold.outgrow.replicas.replica import DEFAULTS, Replica, ReplicaLimits
from freehold.route.providers.hop import Hop

# The longest path of a socket below a deployment's folder, which another engine or one of ours has.
_SOCKET, _OWN_SOCKET = "0000/s.sock", "0000/home/serve/server.sock"


class DeployedModels:
    """Implements serving.ModelManager and contract.Deployments."""

    def __init__(
        self,
        models: ModelManager,
        home: Path,
        *,
        drivers: Callable[[DeployPlan], EngineDriver] | None = None,
        limits: ReplicaLimits = DEFAULTS,
    ) -> None:
        """`home`: the data folder. `drivers` returns a plan's driver."""
        self._models, self._home, self._limits = models, home, limits
        self._drivers = drivers or driver_of
        self._hop = Hop()
        self._sets: dict[str, ReplicaSet] = {}
        self._fallbacks: dict[str, str] = {}
        # Names whose engines are being ended; their folder is in use until then.
        self._ending: set[str] = set()
        self._closed = False
        self._sweeping: asyncio.Task[int] | None = None

    # --- deployments ------------------------------------------------------------------------------

    def rows(self) -> list[DeploymentRow]:
        return [each.row(self._fallbacks[name]) for name, each in sorted(self._sets.items())]

    def sweep(self) -> asyncio.Task[int]:
        """Begin to end, once, the engines that an earlier server of this data folder left when it was killed."""
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(asyncio.to_thread(end_left, self._home))
        return self._sweeping

    async def add(self, plan: DeployPlan, *, fallback: str = "") -> DeploymentRow:
        name = named(plan.model.name)
        if self._closed:
            raise EngineClosed("the server is shutting down", "deploy when it is back")
        if name in self._sets:
            raise UsageError(
                f"{name} is deployed already", "freehold deploy upgrade changes it; stop ends it"
            )
        if name in self._ending:
            raise UsageError(f"{name} is being stopped", "deploy it again when its answers have ended")
        await self._check_fallback(fallback)
        await asyncio.shield(self.sweep())  # its engines may hold the devices
        replicas = self._sets[name] = ReplicaSet(
            plan, self._drivers, self._folder(name, plan), self._hop, limits=self._limits
        )
        self._fallbacks[name] = fallback
        await self._idle_copy_out(name)
        replicas.run()
        return replicas.row(fallback)

    async def _check_fallback(self, fallback: str) -> None:
        try:
            if fallback:
                await self._models.name_of(fallback)
        except ModelNotFound as e:
            raise UsageError(f"--fallback {fallback}: {e.message}", e.hint, field="fallback") from e

    async def _idle_copy_out(self, name: str) -> None:
        """Unload the stored model of a deployment's name, unless an answer or a fallback needs it."""
        if name in self._fallbacks.values():
            return
        for each in self._models.loaded():
            if each.name == name and not each.in_flight:
                await self._models.unload(name)

    async def restart(self, name: str, *, drain_first: bool = False) -> None:
        replicas = self._set(name)
        await replicas.roll(replicas.plan, "restart", drain_first=drain_first)

    async def upgrade(
        self, name: str, plan: DeployPlan, *, fallback: str = "", drain_first: bool = False
    ) -> None:
        if plan.model.name != name:
            raise UsageError(
                f"the plan is for {plan.model.name}, not for {name}", f"plan it with --name {name}"
            )
        replicas = self._set(name)
        await self._check_fallback(fallback)
        await replicas.roll(plan, "upgrade", drain_first=drain_first)
        if self._sets.get(name) is replicas:  # it may have been stopped meanwhile
            self._fallbacks[name] = fallback

    async def stop(self, name: str, drain_s: float) -> None:
        replicas = self._set(name)
        del self._sets[name], self._fallbacks[name]
        self._ending.add(name)
        try:
            await replicas.stop(drain_s)
        finally:
            self._ending.discard(name)

    def log(self, name: str, replica: int) -> Sequence[str]:
        return self._set(name).replica(replica).log

    def _set(self, name: str) -> ReplicaSet:
        replicas = self._sets.get(name)
        if replicas is None:
            names = ", ".join(sorted(self._sets)) or "none"
            raise ModelNotFound(f"there is no deployment {name[:200]!r}", f"deployed: {names}")
        return replicas

    def _folder(self, name: str, plan: DeployPlan) -> Path:
        """Return an empty 0700 folder whose sockets have paths that are short enough to bind."""
        folder = self._home / "engines" / quote(name, safe="+@ ").replace(".", "%2E")
        socket = _OWN_SOCKET if plan.engine == "freehold" else _SOCKET
        if len(str(folder / socket).encode()) > SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix=temporary_prefix(self._home)))
        shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed
        return private.folder(folder, self._home)

    # --- models -----------------------------------------------------------------------------------

    def asked_by(self, origin: Origin) -> _AskedModels:
        return _AskedModels(self, self._models, origin)

    async def names(self) -> Sequence[StoredModel]:
        return await self.asked_by(Origin()).names()

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        return await self.asked_by(Origin()).use(name, keep_alive)

    async def name_of(self, name: str) -> str:
        return name if name in self._sets else await self._models.name_of(name)

    async def stamp_of(self, name: str) -> str:
        return "" if name in self._sets else await self._models.stamp_of(name)

    def loaded(self) -> Sequence[LoadedInfo]:
        own = [each for each in self._models.loaded() if each.name not in self._sets]
        return [*own, *map(_loaded, self._sets.values())]

    def counters(self) -> Sequence[CounterTable]:
        return (*self._models.counters(), *tables(self._sets.values()))

    def loading(self) -> Mapping[str, tuple[int, int]]:
        return self._models.loading()

    async def unload(self, name: str) -> None:
        self._not_deployed(name, f"freehold deploy stop {name} ends it")
        await self._models.unload(name)

    async def retire(self, name: str) -> None:
        await self._models.retire(name)

    async def add_adapter(self, name: str, adapter: str, path: Path) -> None:
        self._not_deployed(name, "its engine takes adapters when it is started")
        await self._models.add_adapter(name, adapter, path)

    async def remove_adapter(self, name: str, adapter: str) -> None:
        self._not_deployed(name, "its engine takes adapters when it is started")
        await self._models.remove_adapter(name, adapter)

    def _not_deployed(self, name: str, hint: str) -> None:
        if name in self._sets:
            raise UsageError(f"{name} is deployed, and not a model of this server's own engine", hint)

    async def close(self, drain_s: float) -> None:
        """Let answers end for up to `drain_s`, and end all engines: those deployed and our own."""
        self._closed = True
        await asyncio.gather(
            self._models.close(drain_s), *(each.stop(drain_s) for each in self._sets.values())
        )
        await self._hop.close()

    # --- what one request sees --------------------------------------------------------------------

    def deployed(self, name: str) -> ReplicaSet | None:
        """Return a deployment by name."""
        return self._sets.get(name)

    def fallback(self, name: str) -> str:
        """Return the model of ours that answers in a deployment's place, where no replica is ready; "" for none."""
        replicas = self._sets[name]
        return "" if replicas.ready else self._fallbacks[name]

    def listed(self) -> list[StoredModel]:
        """Return the deployments as models with a name."""
        return [StoredModel(name, each.plan.model.anatomy.weight_bytes) for name, each in self._sets.items()]


class _AskedModels:
    """Implements serving.ModelDirectory for one origin."""

    def __init__(self, deployed: DeployedModels, models: ModelManager, origin: Origin) -> None:
        self._deployed, self._own = deployed, models.asked_by(origin)

    async def names(self) -> Sequence[StoredModel]:
        beyond = {each.name: each for each in self._deployed.listed()}
        own = {each.name: each for each in await self._own.names()}
        return sorted({**own, **beyond}.values(), key=lambda m: m.name)

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        replicas = self._deployed.deployed(name)
        if replicas is None:
            return await self._own.use(name, keep_alive)
        if other := self._deployed.fallback(name):
            try:
                return FallbackHandle(await self._own.use(other, keep_alive), name)
            except FreeholdError:
                if all(replica.hopeless for replica in replicas):
                    raise
        return DeployedHandle(replicas)

    async def name_of(self, name: str) -> str:
        return await self._deployed.name_of(name)

    async def stamp_of(self, name: str) -> str:
        return await self._deployed.stamp_of(name)

    def loaded(self) -> Sequence[LoadedInfo]:
        return self._deployed.loaded()


def _loaded(replicas: ReplicaSet) -> LoadedInfo:
    info, stats = info_of(replicas), stats_of(replicas)
    restarts = sum(replica.restarts for replica in replicas)
    return LoadedInfo(replicas.name, info, stats, None, replicas.in_flight, restarts)


# --- a deployed model as the server sees any model: jobs, counts, vectors, and what it is ---------------
# Where no replica is ready, the model of ours that was named for it answers, and the receipt says so.

EMBED_S = 600.0
CHARS_A_TOKEN = 4  # of English text, where an engine shows no tokenizer
MOST_TEXTS = 4096  # tokens whose texts are asked for one by one


class DeployedHandle:
    """Implements serving.ModelHandle."""

    def __init__(self, replicas: ReplicaSet) -> None:
        self._replicas = replicas
        shows = any(r.driver.wire.tokens is not None for r in replicas)
        self._tokenizer = DeployedTokenizer(replicas.name, self._answering) if shows else None

    @property
    def name(self) -> str:
        return self._replicas.name

    @property
    def info(self) -> ModelInfo:
        return info_of(self._replicas)

    @property
    def stats(self) -> EngineStats:
        return stats_of(self._replicas)

    @property
    def tokenizer(self) -> TokenizerFace | None:
        return self._tokenizer

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        return await self._replicas.start(job)

    async def count(self, job: Job) -> int:
        if pictures_of(job) and self._replicas.plan.engine != "freehold":
            return await self._estimated(job)
        if self._tokenizer is not None:
            with suppress(FreeholdError, TimeoutError):  # an estimate is better than no answer
                return await self._counted(job)
        parts = [job.prompt or ""] if job.messages is None else [m.content for m in job.messages]
        chars = sum(len(part) if isinstance(part, str) else CHARS_A_TOKEN * len(part) for part in parts)
        return EstimatedCount(max(-(-chars // CHARS_A_TOKEN), 1))

    async def _estimated(self, job: Job) -> EstimatedCount:
        """Count a chat with pictures: an engine's tokenizer takes each for one token, so theirs are counted here."""
        door, plan = self._replicas.door, self._replicas.plan
        await door.check(job, plan)
        pictures = await door.tokens(job, plan) or 0
        return EstimatedCount(await self.count(without_pictures(job)) + pictures)

    async def _counted(self, job: Job) -> int:
        if isinstance(job.prompt, tuple):
            return len(job.prompt)
        calls = self._answering()
        if job.prompt is not None:
            return len(await calls.tokenize(job.prompt, special=True))
        return len(await calls.render(job))

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        vectors = await self._replicas.embed(job, EMBED_S)
        if computed is not None:
            computed(sum(vectors.tokens))
        return vectors

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> SpeechStream:
        """Refuse: recordings are heard by engines of ours alone."""
        raise reads_text(self.name)

    def _answering(self) -> EngineCalls:
        answering = next((r.calls for r in self._replicas if r.ready and r.calls is not None), None)
        if answering is None:
            raise EngineLost(
                f"no replica of {self.name} is ready", "freehold deploy status shows how far they are"
            )
        return answering


class FallbackHandle(DelegatingHandle):
    """A model of ours in the place of a deployment; its receipts name it."""

    def __init__(self, handle: ModelHandle, name: str) -> None:
        super().__init__(handle)
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        stream = await self.handle.start(job, keep_alive)
        warning = f"no replica of {self._name} was ready: {self.handle.name} answered"
        begin = stream.begin
        return _Renamed(stream, replace(begin, model=self.handle.name, warnings=(*begin.warnings, warning)))

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        """Refuse: a store of vectors would hold those of two models from then on."""
        raise EngineLost(
            f"no replica of {self._name} is ready",
            "vectors of its fallback cannot be compared with its own: try again later",
        )


class _Renamed:
    """A stream with another begin."""

    def __init__(self, stream: Stream, begin: Begin) -> None:
        self._stream, self.begin = stream, begin

    @property
    def more(self) -> bool:
        return self._stream.more

    def __aiter__(self) -> _Renamed:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        await self._stream.aclose()


def info_of(replicas: ReplicaSet) -> ModelInfo:
    """Return what a deployment is, mostly by its plan: it can be shown before any replica is ready."""
    plan = replicas.plan
    can, anatomy = abilities_of(plan), plan.model.anatomy
    # An engine tells thoughts from the answer by a parser, which ours has for each of its models.
    parses = any("reasoning" in flag.name for flag in plan.flags)
    thinks = parses or (plan.engine == "freehold" and bool(plan.model.thinks))
    ready = f"{sum(r.ready for r in replicas)} of {plan.replicas} replicas ready"
    return ModelInfo(
        name=replicas.name,
        quantization=plan.model.quantised or anatomy.quant,
        context=plan.context,
        trained_context=anatomy.context or plan.context,
        kv_tokens=0,
        threads=0,
        load_s=max((r.load_s for r in replicas), default=0.0),
        memory_bytes=plan.total_bytes,
        vocab=anatomy.vocab,
        can_chat=not replicas.embeds,
        can_fill=False,
        default_sampling=SamplingParams(),
        can_see=can.images,
        can_call=can.tools,
        thinking="switch" if thinks else "none",
        notes=(f"{plan.engine} {plan.version}: {ready}",),
        width=anatomy.hidden,
        embeds_only=replicas.embeds,
    )


def stats_of(replicas: ReplicaSet) -> EngineStats:
    """Return the sums of all replicas' counters; they outlive restarts."""
    numbers = [replica.numbers for replica in replicas]
    prompt, cached = sum(n.prompt_tokens for n in numbers), sum(n.cached_tokens or 0 for n in numbers)
    return EngineStats(
        running=sum(n.running for n in numbers),
        waiting=sum(n.waiting for n in numbers),
        prompt_tokens=prompt,
        cached_tokens=cached,
        computed_tokens=max(prompt - cached, 0),
        generated_tokens=sum(n.generated_tokens for n in numbers),
    )


class DeployedTokenizer:
    """Implements serving.TokenizerFace: any replica can be asked, they have the same.

    `calls` returns a replica that answers, or raises; it knows no client.
    """

    def __init__(self, name: str, calls: Callable[[], EngineCalls]) -> None:
        self._name, self._calls = name, calls

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        return await self._calls().tokenize(text, special=special)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        return await self._calls().detokenize(ids)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        if len(ids) > MOST_TEXTS:
            raise UnsupportedModel(
                f"the engine of {self._name} gives the texts of {MOST_TEXTS:,} tokens at a time, not {len(ids):,}"
            )
        return [(await self._calls().detokenize([i])).encode() for i in ids]

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        return await self._calls().render(Job(messages=tuple(messages), think=think, turn=turn))

    async def template(self) -> dict[str, Any]:
        raise UnsupportedModel(f"the engine of {self._name} does not show its chat template")


# --- the counters of deployments for our metrics: one line a replica, under names of ours -----------
# An engine's own series keep their names after `replica_`: ours of the same name have other labels.

_LABELS = ("model_name", "engine", "replica")
_OF_ALL = "of all engines of the replica together."
# (name, help, whether it may shrink, what of a replica)
_OF_REPLICA: tuple[tuple[str, str, bool, Callable[[Replica], float | None]], ...] = (
    ("ready", "Whether the replica answers.", True, lambda r: r.ready),
    ("requests_in_flight", "Requests that the replica has.", True, lambda r: r.in_flight),
    ("restarts", "Engines started after a death.", False, lambda r: r.restarts),
    ("running", "Requests that the engine computes.", True, lambda r: r.numbers.running),
    ("waiting", "Requests that wait in the engine.", True, lambda r: r.numbers.waiting),
    ("prompt_tokens", f"Prompt tokens received, {_OF_ALL}", False, lambda r: r.numbers.prompt_tokens),
    ("generated_tokens", f"Tokens generated, {_OF_ALL}", False, lambda r: r.numbers.generated_tokens),
    ("cached_tokens", "Prompt tokens found in the cache.", False, lambda r: r.numbers.cached_tokens),
    ("cache_usage", "Share of the cache in use, 0 to 1.", True, lambda r: r.numbers.cache_usage),
)
# (name, help): counts of a deployment
_OF_SET = (
    ("requests", "Requests received."),
    ("retried", "Requests asked again of another replica before their first token."),
    ("resumed", "Answers that another replica continued."),
    ("cut", "Answers that ended with an error after their first token."),
)


def tables(sets: Iterable[ReplicaSet]) -> list[CounterTable]:
    """Return the tables of all deployments."""
    deployments = list(sets)
    lines = [(each, replica) for each in deployments for replica in each]
    out = [
        CounterTable(f"freehold_replica_{name}", help, _LABELS, _summed(lines, value), gauge)
        for name, help, gauge, value in _OF_REPLICA
    ]
    for name in sorted({name for _, replica in lines for name in replica.numbers.series if "{" not in name}):
        values = _summed(lines, lambda r, n=name: r.numbers.series.get(n))
        # As a gauge: it has its whole name already, and the library would add _total to a counter's.
        out.append(CounterTable(f"replica_{name}", "As the engine tells it.", _LABELS, values, True))
    for name, help in _OF_SET:
        counts = {(each.name,): getattr(each, name) for each in deployments}
        out.append(CounterTable(f"freehold_deployment_{name}", help, ("model_name",), counts))
    return out


def _summed(
    lines: Iterable[tuple[ReplicaSet, Replica]], value: Callable[[Replica], float | None]
) -> dict[tuple[str, ...], float]:
    """Return a value by replica: while a roll ends an old one, two engines have one number."""
    sums: dict[tuple[str, ...], float] = {}
    for each, replica in lines:
        if (n := value(replica)) is not None:
            key = (each.name, replica.plan.engine, str(replica.number))
            sums[key] = sums.get(key, 0.0) + n
    return sums
