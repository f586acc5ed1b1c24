"""A deployed model as the server sees any model: jobs, counts, vectors, and what it is.

Where no replica is ready, the model of ours that was named for it answers, and the receipt says so.
Path: server/core/answering.py -> DeployedHandle.start -> ReplicaSet.start -> DeployedStream
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from freehold.backends.contract import DeployPlan
from freehold.backends.replicas.calls import EngineCalls, abilities_of
from freehold.backends.replicas.deployment import ReplicaSet
from freehold.delegating import DelegatingHandle
from freehold.errors import EngineLost, FreeholdError, UnsupportedModel
from freehold.serving import (
    Begin,
    EmbedJob,
    EngineStats,
    EstimatedCount,
    Job,
    ModelHandle,
    ModelInfo,
    Stream,
    TokenizerFace,
    Vectors,
)
from freehold.types import Chunk, Message, SamplingParams, Turn

EMBED_S = 600.0
CHARS_A_TOKEN = 4  # of English text, where an engine shows no tokenizer


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
        if self._tokenizer is not None:
            try:
                return await self._counted(job)
            except (FreeholdError, TimeoutError):
                pass  # an estimate is better than no answer
        parts = [job.prompt or ""] if job.messages is None else [m.content for m in job.messages]
        chars = sum(len(part) if isinstance(part, str) else CHARS_A_TOKEN * len(part) for part in parts)
        return EstimatedCount(max(-(-chars // CHARS_A_TOKEN), 1))

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
        told = replace(begin, model=self.handle.name, warnings=(*begin.warnings, warning))
        return _Told(stream, told)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        """Refuse: a store of vectors would hold those of two models from then on."""
        raise EngineLost(
            f"no replica of {self._name} is ready",
            "vectors of its fallback cannot be compared with its own: ask again later",
        )


class _Told:
    """A stream with another begin."""

    def __init__(self, stream: Stream, begin: Begin) -> None:
        self._stream, self.begin = stream, begin

    @property
    def more(self) -> bool:
        return self._stream.more

    def __aiter__(self) -> _Told:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        await self._stream.aclose()


def info_of(replicas: ReplicaSet) -> ModelInfo:
    """Return what a deployment is, mostly by its plan: it can be shown before any replica is ready."""
    plan = replicas.plan
    can, anatomy = abilities_of(plan), plan.model.anatomy
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
        thinking="switch" if _thinks(plan) else "none",
        notes=(
            f"{plan.engine} {plan.version}: {sum(r.ready for r in replicas)} of {plan.replicas} replicas ready",
        ),
        width=anatomy.hidden,
        embeds_only=replicas.embeds,
    )


def _thinks(plan: DeployPlan) -> bool:
    """Whether an engine tells thoughts from the answer: by a parser, which ours has for each of its models."""
    by_flag = any("reasoning" in flag.name for flag in plan.flags)
    return by_flag or (plan.engine == "freehold" and bool(plan.model.thinks))


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


# --- a deployed model's tokenizer -------------------------------------------------------------------
# As its engine shows it: any replica can be asked, they have the same.

MOST_TEXTS = 4096  # tokens that are asked for one by one


class DeployedTokenizer:
    """Implements serving.TokenizerFace. `calls` returns a replica that answers, or raises; it knows no client."""

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
