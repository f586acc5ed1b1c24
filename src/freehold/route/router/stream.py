"""A good answer on its way to the client: counted, and booked before its last piece is handed on.

However it ends there is one row: whole, broken by its target, or left by the client; where no usage came, the tokens
are estimated from what passed. Knows chunks, counts and the record; opens nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from freehold.base.errors import FreeholdError, LedgerUnavailable
from freehold.base.prompts import PromptSize
from freehold.base.serving import Begin, Job, prefill_of
from freehold.base.types import Chunk, Usage
from freehold.route.providers.contract import Piece, UpstreamFault
from freehold.route.router.attempts import CLOCK_S, Started
from freehold.route.router.breaker import TargetLoad
from freehold.route.router.gateway import GatewayRoute
from freehold.route.router.ledger.rows import NOTHING, Outcome
from freehold.route.router.parts import GatewayParts
from freehold.route.router.record import RequestRecord, added
from freehold.route.router.tokens import letters_in, used_so_far

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
