"""A name that a request uses, as one model: whatever answers it, the server sees a ModelHandle.

Here is the order of a request: labels, targets, money, cache, attempts, stream. Knows the parts and their order; each
part's rules are its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from freehold.base.errors import BudgetSpent, LedgerUnavailable, PolicyRefused, UnsupportedModel, UsageError
from freehold.base.prompts import PromptSize, prompt_size
from freehold.base.serving import (
    EmbedJob,
    EngineStats,
    Job,
    ModelHandle,
    ModelInfo,
    Origin,
    Stream,
    TokenizerFace,
    Vectors,
)
from freehold.base.types import SamplingParams
from freehold.route.providers.contract import Cleared, Piece
from freehold.route.router.answers import CachedStream, answer_key
from freehold.route.router.attempts import ANSWER_TOKENS, Attempts, MostCosts
from freehold.route.router.budgets import ROOM_WAIT_S
from freehold.route.router.embeds import Computed, counted, embed_cost, embedded, only_one_space
from freehold.route.router.gateway import GatewayModel
from freehold.route.router.parts import GatewayParts
from freehold.route.router.record import RequestAbout, RequestRecord
from freehold.route.router.routing import GatewayPlan, PassedOver, PlannedRoute, TargetChoice, choose
from freehold.route.router.stream import RoutedStream, Whole

UNKNOWN_CONTEXT = 131_072  # shown for a rented model without a stated window; never compared with a prompt
T = TypeVar("T")
W = TypeVar("W", Job, EmbedJob)
_REFUSALS = (PolicyRefused, BudgetSpent, UsageError, UnsupportedModel)  # where nothing was asked


class RoutedHandle:
    """A route, or a model as a route of one. `owned`: the engine's handle, where that is its only target."""

    def __init__(
        self,
        parts: GatewayParts,
        plan: GatewayPlan,
        planned: PlannedRoute,
        origin: Origin,
        *,
        keep_alive: float | None = None,
        owned: ModelHandle | None = None,
    ) -> None:
        self._parts, self._plan, self._planned, self._origin = parts, plan, planned, origin
        self._keep_alive, self._owned = keep_alive, owned

    @property
    def name(self) -> str:
        return self._planned.name

    @property
    def info(self) -> ModelInfo:
        if self._owned is not None:
            return self._owned.info
        if not self._planned.remote:
            return info_of(self._planned, self._locals)
        info = self._plan.infos.get(self.name)
        if info is None:
            info = self._plan.infos[self.name] = info_of(self._planned, {})
        return info

    @property
    def stats(self) -> EngineStats:
        return self._owned.stats if self._owned is not None else EngineStats()

    @property
    def tokenizer(self) -> TokenizerFace | None:
        return self._owned.tokenizer if self._owned is not None else None

    @property
    def _locals(self) -> dict[str, ModelInfo]:
        return {each.name: each.info for each in self._parts.calls.engines.loaded()}

    # --- answers -------------------------------------------------------------------------------

    async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
        record = self._record(batch=job.priority == "batch" and self._origin.door == "batch")
        return await self._recorded(record, self._started(record, job, keep_alive))

    async def _recorded(self, record: RequestRecord, work: Coroutine[Any, Any, T]) -> T:
        """Await a request's work; where it fails, it has a row that says so."""
        try:
            return await work
        except Exception as e:  # also one that has no name: its reservation must come back
            if not isinstance(e, LedgerUnavailable) or record.holds:
                refused = isinstance(e, _REFUSALS) and not record.attempts
                await record.book_quietly("refused" if refused else "failed")
            raise
        except asyncio.CancelledError:
            await self._parts.background.shielded(record.book_quietly("left"))
            raise

    async def _started(self, record: RequestRecord, job: Job, keep_alive: float | None) -> Stream:
        parts, planned = self._parts, self._planned
        cleared = await self._cleared(record, job)
        key = b""
        if planned.route.cache_s:
            identity = cleared, self._origin.key, planned.name, self._plan.gateway.digest
            key = await asyncio.to_thread(answer_key, *identity)
            if (kept := parts.cache.find(key)) is not None:
                return CachedStream(record, kept)
        size = prompt_size(job)
        choice = self._choice(record, cleared, size, self._windows)
        if record.limit is not None:
            cleared = self._bounded(cleared, choice, record)
        most = MostCosts(cleared.work, size, record.at)
        await self._reserve(record, choice, most)
        attempts = Attempts(parts, record, choice, planned.route, size, most)
        keep = self._keep_alive if keep_alive is None else keep_alive
        started = await attempts.first_good(cleared, keep)
        whole = self._whole(record, cleared, key, started.target, started.stream)
        stream = RoutedStream(parts, record, started, job, size, planned.route, whole)
        try:
            await record.keep(most(started.target))
        except LedgerUnavailable:
            pass  # more than is needed stays set aside until the row is booked
        except BaseException:
            await stream.aclose()
            raise
        return stream

    def _record(self, *, batch: bool = False) -> RequestRecord:
        policy = self._plan.gateway.keys.get(self._origin.key)
        about = RequestAbout(self._planned.name, self._planned.route.task, batch)
        return RequestRecord(self._origin, about, self._parts.books, policy.budget if policy else None)

    async def _cleared(self, record: RequestRecord, work: W) -> Cleared[W]:
        cleared = await self._plan.labeller.clear(work, self._origin, self._planned.route)
        record.labels = cleared.labels
        return cleared

    def _choice(
        self,
        record: RequestRecord,
        cleared: Cleared[Job] | Cleared[EmbedJob],
        size: PromptSize,
        windows: Mapping[str, int] | None = None,
    ) -> TargetChoice:
        parts = self._parts
        record.choice = choose(self._planned, cleared, size, parts.breakers, parts.bars, windows, parts.load)
        return record.choice

    @property
    def _windows(self) -> dict[str, int]:
        if self._planned.remote:
            return {}
        return {name: info.context for name, info in self._locals.items()}

    def _bounded(self, cleared: Cleared[Job], choice: TargetChoice, record: RequestRecord) -> Cleared[Job]:
        """Return the request with a limit on its answer, without which no budget holds."""
        if cleared.work.max_tokens is not None or all(target.price is None for target in choice.allowed):
            return cleared
        known = [t.remote.max_output for t in choice.allowed if t.remote is not None and t.remote.max_output]
        limit = min([ANSWER_TOKENS, *known])
        record.warnings.append(
            f"max_tokens was set to {limit:,}: the key has a budget, and the request no limit"
        )
        return cleared.with_work(replace(cleared.work, max_tokens=limit))

    async def _reserve(
        self, record: RequestRecord, choice: TargetChoice, most: Callable[[GatewayModel], int]
    ) -> None:
        """Set the price of the dearest target aside; pass over those that the budget does not cover."""
        spent: BudgetSpent | None = None
        while choice.allowed:
            prices = [most(target) for target in choice.allowed]
            dearest = max(range(len(prices)), key=prices.__getitem__)
            # Money of answers in flight is worth a wait where nothing else can answer.
            wait_s = ROOM_WAIT_S if min(prices) == prices[dearest] else 0.0
            try:
                return await record.reserve(
                    prices[dearest], choice.allowed[dearest], sent=prices[0] > 0, wait_s=wait_s
                )
            except BudgetSpent as e:
                spent = e
                choice.drop(choice.allowed[dearest], PassedOver("budget", e.message))
        raise spent or choice.none_left()

    def _whole(
        self, record: RequestRecord, cleared: Cleared[Job], key: bytes, target: GatewayModel, stream: Stream
    ) -> Whole | None:
        """Return what is done with a whole answer: kept, its texts too, followed by a shadow, or nothing."""
        parts, route = self._parts, self._planned.route
        shadow = route.shadow if parts.shadows.wanted(route, cleared) else None
        texts = parts.texts if route.keep_text and not cleared.labels else None
        if not key and shadow is None and texts is None:
            return None

        def done(pieces: list[Piece]) -> None:
            if key:
                parts.cache.keep(key, target, stream.begin, pieces, route.cache_s)
            if texts is not None:
                row = (record.id, record.at, route.name, target.name)
                parts.background.begin(asyncio.to_thread(texts.keep, *row, cleared.work, pieces))
            if shadow is not None:
                parts.shadows.begin(route, self._plan.target(shadow.target), cleared, record)

        return done

    # --- embeddings, counts ----------------------------------------------------------------------

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Computed | None = None
    ) -> Vectors:
        record = self._record(batch=job.priority == "batch" and self._origin.door == "batch")
        return await self._recorded(record, self._embedded(record, job, keep_alive, computed))

    async def _embedded(
        self, record: RequestRecord, job: EmbedJob, keep_alive: float | None, computed: Computed | None
    ) -> Vectors:
        cleared = await self._cleared(record, job)
        size = prompt_size(job)
        choice = self._choice(record, cleared, size)
        only_one_space(choice)
        await self._reserve(record, choice, lambda target: embed_cost(target, size, record.at))
        keep = self._keep_alive if keep_alive is None else keep_alive
        route = self._planned.route
        return await embedded(
            self._parts, cleared, choice, record, route, size, keep_alive=keep, computed=computed
        )

    async def count(self, job: Job) -> int:
        if self._owned is not None:
            return await self._owned.count(job)
        record = self._record()
        cleared = await self._cleared(record, job)
        size = prompt_size(job)
        choice = self._choice(record, cleared, size)
        return await counted(self._parts, cleared, choice, record, self._planned.route.timeout_s, size)


def info_of(planned: PlannedRoute, loaded: Mapping[str, ModelInfo]) -> ModelInfo:
    """Return what a route offers: whatever any of its targets can do, as a request goes to one that can."""
    locals_ = [loaded[t.local] for t in planned.targets if t.remote is None and t.local in loaded]
    remotes = [t.remote for t in planned.targets if t.remote is not None]
    unloaded = any(t.remote is None and t.local not in loaded for t in planned.targets)
    context = max([*(info.context for info in locals_), *(remote.context for remote in remotes)], default=0)
    thinks = (
        unloaded or any(r.abilities.thinking for r in remotes) or any(i.thinking != "none" for i in locals_)
    )
    return ModelInfo(
        name=planned.name,
        quantization="",
        context=context or UNKNOWN_CONTEXT,
        trained_context=context or UNKNOWN_CONTEXT,
        kv_tokens=0,
        threads=0,
        load_s=0.0,
        memory_bytes=0,
        vocab=0,
        can_chat=True,
        can_fill=unloaded or any(info.can_fill for info in locals_),
        default_sampling=SamplingParams(),
        can_see=unloaded or any(r.abilities.images for r in remotes) or any(i.can_see for i in locals_),
        can_fetch=any(r.abilities.images for r in remotes),
        can_call=True,
        thinking="switch" if thinks else "none",
        efforts=("low", "medium", "high") if thinks else (),
        notes=("a route: its targets answer",) if len(planned.targets) > 1 else (),
    )
