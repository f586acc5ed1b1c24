"""A name that a request uses, as one model: whatever answers it, the server sees a ModelHandle.

Here is the order of a request: labels, targets, money, cache, attempts, stream. Knows the parts and their order; each
part's rules are its own.

A good answer on its way to the client is counted, and booked before its last piece is handed on. However it ends there
is one row: whole, broken by its target, or left by the client; where no usage came, the tokens are estimated from what
passed.

Embeddings and counts over a route have the same labels, reasons, money and row as an answer. Vectors of two models are
not comparable, so a route embeds with its first target's model only, at whatever places have it. A count comes from an
engine, from a provider's own door, or is our estimate, and says so.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from freehold.base.errors import (
    BudgetSpent,
    FreeholdError,
    LedgerUnavailable,
    PolicyRefused,
    UnsupportedModel,
    UsageError,
)
from freehold.base.prompts import PromptSize, prompt_size
from freehold.base.serving import (
    Begin,
    EmbedJob,
    EngineStats,
    EstimatedCount,
    Job,
    ModelHandle,
    ModelInfo,
    Origin,
    SpeechJob,
    SpeechSource,
    SpeechStream,
    Stream,
    TokenizerFace,
    Vectors,
    hears_alone,
    prefill_of,
)
from freehold.base.types import Chunk, Usage
from freehold.route.providers.contract import HOUSE, Cleared, Piece, UpstreamFault
from freehold.route.router.answers import CachedStream, answer_key
from freehold.route.router.attempts import ANSWER_TOKENS, CLOCK_S, Attempts, MostCosts, Started
from freehold.route.router.gateway import TRANSCRIPTION, BreakerLimits, GatewayModel, GatewayRoute
from freehold.route.router.hearing import RoutedHearing, check_hears, choose_hearing
from freehold.route.router.ledger.rows import NOTHING, Outcome
from freehold.route.router.parts import (
    BREAKS_AT_ONCE,
    CHARGED,
    NEVER_SENT,
    SAYS_NOTHING,
    GatewayParts,
    TargetCalls,
    cause_of,
    fitted,
)
from freehold.route.router.price import letters_in, used_so_far
from freehold.route.router.record import ROOM_WAIT_S, RequestAbout, RequestRecord, added
from freehold.route.router.routing import (
    Breakers,
    GatewayPlan,
    PassedOver,
    PlannedRoute,
    TargetChoice,
    TargetLoad,
    choose,
    info_of,
)

# --- embeddings and counts -------------------------------------------------------------------------

Computed = Callable[[int], None]


def only_one_space(choice: TargetChoice) -> None:
    """Pass over the targets whose vectors are not those of the route's first target."""
    first = choice.order[0]
    for target in list(choice.allowed):
        if _weights(target) != _weights(first):
            choice.drop(
                target, PassedOver("ability", f"its vectors are not comparable with those of {first.name}")
            )


def _weights(target: GatewayModel) -> str:
    return target.local if target.remote is None else target.remote.model


def embed_cost(target: GatewayModel, size: PromptSize, when: float) -> int:
    """Return nano-dollars that embedding texts does not exceed."""
    return target.price.most(size.most, 0, when) if target.price is not None else 0


async def embedded(
    parts: GatewayParts,
    cleared: Cleared[EmbedJob],
    choice: TargetChoice,
    record: RequestRecord,
    route: GatewayRoute,
    size: PromptSize,
    *,
    keep_alive: float | None = None,
    computed: Computed | None = None,
) -> Vectors:
    """Return the vectors of the first target that answers, its row booked."""
    breakers, last = parts.breakers, None
    for target in list(choice.allowed):
        most, guess = embed_cost(target, size, record.at), parts.ratio(target).prompt_tokens(size)
        try:
            await record.reserve(most, target)
        except BudgetSpent as e:  # earlier targets may have charged for what did not arrive
            last = last or e
            choice.drop(target, PassedOver("budget", e.message))
            continue
        if target.price is not None:
            await record.leaves()
        alone = target is choice.allowed[-1]
        reason, wait_s = await breakers.turn(target.name, route.timeout_s if alone else 0.0)
        if reason:
            choice.drop(target, PassedOver("breaker", reason, wait_s))
            continue
        began = time.monotonic()
        breakers.begin(target.name)
        try:
            vectors = await _vectors(target, cleared, parts.calls, route.timeout_s, keep_alive, computed)
        except FreeholdError as e:
            last = e
            _failed(target, e, record, breakers, route.breaker, began, most, guess)
            if cause_of(e) in SAYS_NOTHING:
                raise
            continue
        except BaseException:
            breakers.dropped(target.name)
            record.attempted(
                target, "left", time.monotonic() - began, nano=_charged(target, record, most, guess)
            )
            raise
        breakers.answered(target.name)
        usage = Usage(sum(vectors.tokens), 0)
        record.attempted(target, "", time.monotonic() - began, nano=record.cost(target, usage))
        await record.book("whole", target, usage)
        return vectors
    raise last or choice.none_left()


async def _vectors(
    target: GatewayModel,
    cleared: Cleared[EmbedJob],
    calls: TargetCalls,
    timeout_s: float,
    keep_alive: float | None,
    computed: Computed | None,
) -> Vectors:
    if target.remote is None:
        served = await calls.engines.use(target.local, keep_alive)
        return await served.embed(cleared.work, keep_alive, computed)
    vectors = await calls.rents().embed(cleared, target.remote, timeout_s=timeout_s)
    if computed is not None:
        computed(sum(vectors.tokens))
    return vectors


def _failed(
    target: GatewayModel,
    e: FreeholdError,
    record: RequestRecord,
    breakers: Breakers,
    limits: BreakerLimits,
    began: float,
    most: int,
    guess: int,
) -> None:
    if target.remote is not None and isinstance(e, NEVER_SENT):
        breakers.dropped(target.name)
        return
    cause = cause_of(e)
    status = e.status if isinstance(e, UpstreamFault) else 0
    nano = _charged(target, record, most, guess) if cause in CHARGED else 0
    record.attempted(target, cause, time.monotonic() - began, status=status, nano=nano)
    if cause in SAYS_NOTHING:
        breakers.dropped(target.name)
    else:
        breakers.failed(target.name, limits, at_once=cause in BREAKS_AT_ONCE)


def _charged(target: GatewayModel, record: RequestRecord, most: int, guess: int) -> int:
    """Return what an attempt is noted with whose provider may have charged for it, though no count came."""
    if target.price is None:
        return 0
    nano = record.cost(target, Usage(guess, 0))
    record.estimated = True
    record.risked += max(most - nano, 0)
    return nano


async def counted(
    parts: GatewayParts,
    cleared: Cleared[Job],
    choice: TargetChoice,
    record: RequestRecord,
    timeout_s: float,
    size: PromptSize,
) -> int:
    """Return the tokens of a prompt for the route's first target: counted, or an EstimatedCount."""
    if not choice.allowed:
        raise choice.none_left()
    target = choice.allowed[0]
    if target.remote is None:
        cleared.check(HOUSE)
        served = await parts.calls.engines.use(target.local)
        return await served.count(fitted(cleared.work, served.info, []))
    await record.reserve(0, target)  # of no money: refused where no row could be written
    began = time.monotonic()
    try:
        count = await parts.calls.rents().count(cleared, target.remote, timeout_s=timeout_s)
    except asyncio.CancelledError:
        record.attempted(target, "left", time.monotonic() - began)
        await parts.background.shielded(record.book_quietly("left", target))
        raise
    except UpstreamFault as e:  # the prompt was sent: the ledger says so, though nothing is charged
        record.attempted(target, e.cause, time.monotonic() - began, status=e.status)
        await record.book("failed", target)
        if e.cause in SAYS_NOTHING:
            raise
        count = None
    if count is not None:
        record.attempted(target, "", time.monotonic() - began)
        await record.book("whole", target, Usage(count, 0))
        return count
    return EstimatedCount(parts.ratio(target).prompt_tokens(size))


# --- a good answer's stream ------------------------------------------------------------------------

MOST_KEPT = 8 << 20  # bytes of an answer that is kept until it is whole; of a longer one nothing is
Whole = Callable[[list[Piece]], None]


class RoutedStream:
    """The Stream of one request. `whole` is called with all pieces after the row of a whole answer is booked."""

    def __init__(
        self,
        parts: GatewayParts,
        record: RequestRecord,
        started: Started,
        job: Job,
        size: PromptSize,
        route: GatewayRoute,
        whole: Whole | None = None,
    ) -> None:
        self._record, self._target, self._stream = record, started.target, started.stream
        self._began, self._size, self._ratio = started.began, size, parts.ratio(started.target)
        self._background, self._breakers, self._route = parts.background, parts.breakers, route
        self._load: TargetLoad | None = parts.load  # until the answer is over
        self._limit_s = job.timeout_s  # the caller's own
        self._watch, self._whole = started.watch, whole
        self._ready: deque[Piece] = deque(started.pieces)
        self._hides = job.logprobs is None  # a cascade asked for them, and the client did not
        self._usages: list[Usage] = []
        self._left = job.n
        self._length = self._tokens = 0  # of what passed: bytes of text, and tokens where they are reported
        self._kept: list[Piece] | None = [] if whole is not None else None
        self._closed = self._noted = False
        record.first_s = record.passed_s
        self._asked_at = 0.0  # time.monotonic() when the target's next piece was waited for
        inner = started.stream.begin
        self.begin: Begin = inner
        named = inner.model or (started.target.name if started.target.name != record.about.name else "")
        if record.warnings or record.labels or named != inner.model:
            warnings = (*record.warnings, *inner.warnings)
            self.begin = replace(inner, warnings=warnings, model=named, labels=record.label_names)

    @property
    def more(self) -> bool:
        return bool(self._ready) or self._stream.more

    @property
    def prefill(self) -> tuple[int, int] | None:
        return None if self._ready else prefill_of(self._stream)

    def __aiter__(self) -> RoutedStream:
        return self

    async def __anext__(self) -> Piece:
        if self._ready:
            piece = self._ready.popleft()
        elif not self._left:
            raise StopAsyncIteration
        else:
            self._asked_at = time.monotonic()
            try:
                piece = await anext(self._stream)
            except StopAsyncIteration:
                message = f"{self._target.name} ended its answer without saying that it was whole"
                raise await self._broken(UpstreamFault("broken", message)) from None
            except FreeholdError as e:
                raise await self._broken(e) from None
        chunk = piece[1]
        self._length += letters_in(chunk)
        if chunk.token_ids:
            self._tokens += len(chunk.token_ids)
        # What most events are: text alone. They are passed on as they came.
        if not (chunk.finish_reason or chunk.logprobs or chunk.tool_calls or chunk.signed):
            if self._kept is not None:
                self._kept.append(piece)
                if self._length > MOST_KEPT:
                    self._kept = None
            return piece
        return await self._passed(piece)

    async def _passed(self, piece: Piece) -> Piece:
        index, chunk = piece
        if self._hides and chunk.logprobs:
            chunk = replace(chunk, logprobs=())
        if self._watch is not None:
            chunk = self._watch.seen(index, chunk)
        if chunk.finish_reason is not None:
            chunk = await self._answer_ended(index, chunk)
        elif self._kept is not None:
            self._kept.append((index, chunk))
        return index, chunk

    async def _answer_ended(self, index: int, chunk: Chunk) -> Chunk:
        """Note an answer's end; with the last answer's, book the row before the client has it."""
        if chunk.finish_reason == "cancelled":
            raise await self._broken(UpstreamFault("broken", f"{self._target.name} cancelled the answer"))
        if chunk.usage is None and self._left > 1:  # the last of several answers counts the tokens of all
            chunk = replace(chunk, usage=NOTHING)
        elif chunk.usage is None:
            self._record.estimated = True
            chunk = replace(chunk, usage=self._estimate())
        assert chunk.usage is not None
        self._usages.append(chunk.usage)
        self._left -= 1
        if self._kept is not None:
            self._kept.append((index, chunk))
        if self._left == 0:
            self._breakers.answered(self._target.name)
            usage = added(self._usages)
            if not self._record.estimated:
                self._ratio.learn(self._size, usage.prompt_tokens, self._length, usage.completion_tokens)
            await self._book_whole(usage, chunk.finish_reason or "")
            if self._whole is not None and self._kept is not None:
                self._whole(self._kept)
        return chunk

    async def _book_whole(self, usage: Usage, reason: str) -> None:
        """Book a whole answer, or withhold its end: the ledger keeps the row as broken, and writes it when it can."""
        try:
            await self._book("whole", usage, reason)
        except LedgerUnavailable:
            self._closed = True
            await self._stream.aclose()
            raise

    def _estimate(self) -> Usage:
        return used_so_far(self._stream, self._ratio, self._size, self._length, self._tokens)

    async def _book(self, outcome: Outcome, usage: Usage, reason: str = "") -> None:
        record, target = self._record, self._target
        if not self._noted:
            self._noted = True
            cause = "" if outcome == "whole" else outcome
            seconds = time.monotonic() - self._began
            record.attempted(target, cause, seconds, nano=record.cost(target, usage))
        id = getattr(self._stream, "answer_id", "")
        await record.book(outcome, target, usage, reason, id)

    async def _broken(self, error: FreeholdError) -> FreeholdError:
        """Book an answer that its target did not finish; return the error that tells the client."""
        if isinstance(error, UpstreamFault) and not self._cut(error):
            self._breakers.failed(self._target.name, self._route.breaker)
        else:
            self._breakers.dropped(self._target.name)
        await self._background.shielded(self._over("broken"))
        return error

    def _cut(self, error: UpstreamFault) -> bool:
        """Return whether a time limit ended an answer that its target was still making: it says nothing of that one."""
        if error.cause != "timeout":
            return False
        if self._limit_s is not None and self._record.passed_s >= self._limit_s - CLOCK_S:
            return True
        return time.monotonic() - self._asked_at < self._route.first_token_s

    async def _over(self, outcome: Outcome) -> None:
        """End the target's stream, and book what passed with an estimate."""
        try:
            await self._stream.aclose()
        finally:
            if not self._record.booked:
                self._record.estimated = self._target.price is not None
                with suppress(LedgerUnavailable):  # the ledger writes it when it can, and says so in its log
                    await self._book(outcome, self._estimate())

    async def aclose(self) -> None:
        """End the answer: the target stops writing, and what it wrote is booked."""
        if self._load is not None:
            self._load.end(self._target)
            self._load = None
        if self._closed:
            return
        self._closed = True
        if self._record.booked:
            await self._stream.aclose()
            return
        self._breakers.dropped(self._target.name)
        await self._background.shielded(self._over("left"))


# --- the handle ------------------------------------------------------------------------------------

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
        self._check_text()
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

    def _record(self, *, batch: bool = False, task: str = "") -> RequestRecord:
        policy = self._plan.gateway.keys.get(self._origin.key)
        about = RequestAbout(self._planned.name, task or self._planned.route.task, batch)
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
        taught = parts.students.due(self._planned, cleared, target)
        if not key and shadow is None and texts is None and not taught:
            return None

        def done(pieces: list[Piece]) -> None:
            if key:
                parts.cache.keep(key, target, stream.begin, pieces, route.cache_s)
            if texts is not None:
                row = (record.id, record.at, route.name, target.name)
                parts.background.begin(asyncio.to_thread(texts.keep, *row, cleared.work, pieces))
            if shadow is not None:
                parts.shadows.begin(route, self._plan.target(shadow.target), cleared, record)
            if taught:
                parts.students.begin(self._planned, cleared, record, pieces)

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
        self._check_text()
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

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> SpeechStream:
        record = self._record(task=TRANSCRIPTION)
        return await self._recorded(record, self._heard(record, job, recording, keep_alive))

    async def _heard(
        self, record: RequestRecord, job: SpeechJob, recording: SpeechSource, keep_alive: float | None
    ) -> RoutedHearing:
        parts, planned = self._parts, self._planned
        check_hears(self._plan, planned)
        cleared = self._plan.labeller.clear_recording(job, self._origin, planned.route)
        record.labels = cleared.labels
        choice = record.choice = choose_hearing(planned, cleared, recording.size, parts)
        keep = self._keep_alive if keep_alive is None else keep_alive
        hearing = RoutedHearing(parts, planned, record, choice, cleared, recording, keep)
        await hearing.opened()
        return hearing

    def _check_text(self) -> None:
        """Refuse texts for a route of recordings."""
        if self._planned.route.hears:
            raise hears_alone(self.name)

    async def count(self, job: Job) -> int:
        if self._owned is not None:
            return await self._owned.count(job)
        self._check_text()
        record = self._record()
        cleared = await self._cleared(record, job)
        size = prompt_size(job)
        choice = self._choice(record, cleared, size)
        return await counted(self._parts, cleared, choice, record, self._planned.route.timeout_s, size)
