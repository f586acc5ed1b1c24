"""What all requests of a server with a gateway share: it outlives a reload of the file.

Among it is the work that outlives the request that began it, and shadows, which are most of it. A shadow asks another
target too, for a share of a route's requests: its answer is dropped, its figures go to the ledger. Never for a request
with a label, never before the client's answer is whole, a bounded number at a time, and none once the server stops.
What it costs is the house's: no key's budget pays for it. Knows one request at a time and no route.

One call of one target gives the same Stream whether that is owned or rented, and one set of causes where it fails. A
call for a place that the request may not be at is refused here, and in the hop again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

from freehold.base import errors
from freehold.base.errors import FreeholdError, UnsupportedModel, UsageError
from freehold.base.serving import Job, ModelDirectory, ModelInfo, Origin, SpeechSource, Stream
from freehold.base.types import Usage
from freehold.route.providers.contract import Cause, Cleared, Piece, UpstreamFault
from freehold.route.providers.openai.speech import pieces_of
from freehold.route.providers.signatures import Signatures
from freehold.route.router.answers import AnswerCache, KeptTexts
from freehold.route.router.bar import Bars
from freehold.route.router.contract import BarCheck, Books, RentedModels
from freehold.route.router.gateway import BreakerLimits, GatewayModel, GatewayRoute
from freehold.route.router.graduation import StudentWatch
from freehold.route.router.price import TokenRatio
from freehold.route.router.record import RequestAbout, RequestRecord, added
from freehold.route.router.routing import Breakers, TargetLoad, has_addresses, has_images, has_sounds
from freehold.run.sounds.opening import MeasuredSound, measure_sound

# --- one call of one target ------------------------------------------------------------------------


class TargetCalls:
    """Calls of our engines' models and of rented ones."""

    def __init__(self, engines: ModelDirectory, rented: RentedModels | None) -> None:
        self.engines, self.rented = engines, rented

    def rents(self) -> RentedModels:
        """Return the rented models, which a file with remote targets comes with."""
        assert self.rented is not None, "a remote target without a way to reach it"
        return self.rented

    async def start(
        self,
        target: GatewayModel,
        cleared: Cleared[Job],
        warnings: list[str],
        *,
        first_token_s: float,
        timeout_s: float,
        keep_alive: float | None = None,
    ) -> tuple[Stream, Piece]:
        """Return an answer and its first piece; `warnings` is appended to."""
        cleared.check(target.place)
        if target.remote is not None:
            rented = await self.rents().start(
                cleared, target.remote, first_token_s=first_token_s, timeout_s=timeout_s
            )
            return rented, await first_of(rented)
        try:
            async with asyncio.timeout(first_token_s):
                owned = await self._owned(target, cleared, warnings, timeout_s, keep_alive)
                return owned, await first_of(owned)
        except TimeoutError:
            raise UpstreamFault("timeout", f"{target.name} sent nothing for {first_token_s:.3g} s") from None

    async def _owned(
        self,
        target: GatewayModel,
        cleared: Cleared[Job],
        warnings: list[str],
        timeout_s: float,
        keep_alive: float | None,
    ) -> Stream:
        served = await self.engines.use(target.local, keep_alive)
        job = fitted(cleared.work, served.info, warnings)
        if has_images(job) and not served.info.can_see:
            raise UnsupportedModel(f"{target.local} cannot read pictures")
        if has_sounds(job) and not served.info.can_listen:
            raise UnsupportedModel(f"{target.local} cannot process audio")
        if has_addresses(job):
            raise UnsupportedModel(f"{target.local} does not download pictures from URLs")
        return await served.start(replace(job, timeout_s=timeout_s), keep_alive)


async def first_of(stream: Stream) -> Piece:
    """Return a stream's first piece; a stream without one is closed."""
    try:
        return await anext(stream)
    except StopAsyncIteration:
        await stream.aclose()
        raise UpstreamFault("broken", "the answer ended before its first token") from None
    except BaseException:
        await stream.aclose()
        raise


def fitted(job: Job, info: ModelInfo, warnings: list[str]) -> Job:
    """Return the job without the thinking that a model of a route does not know; a door knew none of them."""
    if info.thinking == "none" and (job.think is not None or job.effort or job.think_tokens is not None):
        if job.think is not False:
            warnings.append(f"thinking was left out: {info.name} does not think before it answers")
        return replace(job, think=None, think_tokens=None, effort=None)
    if job.think is False and info.thinking == "always":
        warnings.append(f"thinking could not be disabled: {info.name} always thinks before it answers")
        return replace(job, think=None)
    return job


# --- why an attempt failed, at a provider or an engine, and what is tried next ----------------------
# Our own engines' errors get the causes of a provider's, so that a full queue or a lost engine falls over
# like a fault of a provider.

# error of an engine -> cause; the first class that it is an instance of counts
_ENGINE: tuple[tuple[type[FreeholdError], Cause], ...] = (
    (errors.ContextOverflow, "context"),
    (errors.Overloaded, "rate"),
    (errors.DeadlineExceeded, "timeout"),
    (errors.UsageError, "request"),
    (errors.UnsupportedModel, "request"),
    (errors.BadPrompt, "request"),
    (errors.BadTemplate, "request"),
    (errors.UpstreamFailed, "broken"),
)
# The same target is asked again after these; after others never.
RETRIED: frozenset[Cause] = frozenset({"server", "connect", "broken", "rate"})
BREAKS_AT_ONCE: frozenset[Cause] = frozenset({"auth"})  # the next request would fail as well
SAYS_NOTHING: frozenset[Cause] = frozenset({"request", "context"})  # of a target's health
# The prompt was taken before these, so it may be charged though no answer came.
CHARGED: frozenset[Cause] = frozenset({"timeout", "broken", "invalid"})
# What a provider's wire, or the request's labels, raise before anything is sent to it.
NEVER_SENT = (errors.PolicyRefused, errors.UsageError, errors.UnsupportedModel)
FIRST_WAIT_S, MOST_WAIT_S = 0.1, 2.0  # before the same target is asked again, where it names no time


def cause_of(error: FreeholdError) -> Cause:
    """Return the cause of any failure of an attempt; what has no other is the target's own: server."""
    if isinstance(error, UpstreamFault):
        return error.cause
    causes: list[Cause] = [cause for kind, cause in _ENGINE if isinstance(error, kind)]
    return causes[0] if causes else "server"


def judge(
    breakers: Breakers, target: GatewayModel, cause: Cause, limits: BreakerLimits, *, blameless: bool
) -> None:
    """Count a failed attempt in its target's health; `blameless`: it says nothing of the target, whatever its cause."""
    if blameless or cause in SAYS_NOTHING or (target.remote is None and cause == "rate"):
        breakers.dropped(target.name)
    else:
        breakers.failed(target.name, limits, at_once=cause in BREAKS_AT_ONCE)


def wait_before_retry(error: FreeholdError, tries: int) -> float:
    """Return the seconds before the same target is asked again: those it asked for, or a growing pause."""
    requested_s = error.retry_after_s if isinstance(error, UpstreamFault) else None
    if isinstance(error, errors.Overloaded):
        requested_s = error.wait_s
    return requested_s if requested_s is not None else min(FIRST_WAIT_S * 2 ** (tries - 1), MOST_WAIT_S)


# --- what requests share ---------------------------------------------------------------------------

NAME = "shadow"  # of the tasks
AT_ONCE = 8  # shadows of a server; a request that finds as many has none
Compare = Callable[[str], str]  # a shadow's answer -> how it compares, in a line
_log = logging.getLogger("freehold.route.router")


class Shadows:
    """The shadows of a server."""

    def __init__(
        self,
        calls: TargetCalls,
        books: Books,
        background: Background,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._calls, self._books, self._background, self._draw = calls, books, background, draw
        self.running = 0
        self.closed = False

    def wanted(self, route: GatewayRoute, cleared: Cleared[Job]) -> bool:
        """Draw whether a request has a shadow; one with a label never has."""
        shadow = route.shadow
        if shadow is None or cleared.labels or self.closed or self.running >= AT_ONCE:
            return False
        return self._draw() < shadow.share

    def begin(
        self,
        route: GatewayRoute,
        target: GatewayModel,
        cleared: Cleared[Job],
        parent: RequestRecord,
        compare: Compare | None = None,
    ) -> None:
        """Ask the target, in the background. `compare`: is given its whole text, and returns a line for its row."""
        if self.closed or self.running >= AT_ONCE:
            return
        self.running += 1
        self._background.begin(self._send(route, target, cleared, parent, compare), NAME)

    async def _send(
        self,
        route: GatewayRoute,
        target: GatewayModel,
        cleared: Cleared[Job],
        parent: RequestRecord,
        compare: Compare | None,
    ) -> None:
        origin = Origin(request_id=parent.origin.request_id, door=parent.origin.door)
        record = RequestRecord(
            origin, RequestAbout(parent.about.name, parent.about.task), self._books, parent=parent.id
        )
        try:
            await self._answer(record, route, target, cleared, compare)
        except FreeholdError as e:
            _log.info("a shadow of route %s at %s failed: %s", route.name, target.name, cause_of(e))
        finally:
            self.running -= 1

    async def _answer(
        self,
        record: RequestRecord,
        route: GatewayRoute,
        target: GatewayModel,
        cleared: Cleared[Job],
        compare: Compare | None,
    ) -> None:
        """Read the whole answer and throw it away; the row says what it took, also where it failed."""
        usages: list[Usage] = []
        texts: list[str] = []
        cause, job, began = "", replace(cleared.work, priority="batch", whole=True), time.monotonic()
        reason = ""
        try:
            async with asyncio.timeout(route.timeout_s):
                stream, (_, first) = await self._calls.start(
                    target,
                    cleared.with_work(job),
                    [],
                    first_token_s=route.timeout_s,
                    timeout_s=route.timeout_s,
                )
                try:
                    record.first_s = record.passed_s
                    texts.append(first.text)
                    if first.usage is not None:
                        usages.append(first.usage)
                    async for _, chunk in stream:
                        texts.append(chunk.text)
                        if chunk.usage is not None:
                            usages.append(chunk.usage)
                            reason = chunk.finish_reason or ""
                finally:
                    await stream.aclose()
        except TimeoutError:
            cause = "timeout"
        except NEVER_SENT as e:
            _log.info("a shadow of route %s cannot ask %s: %s", route.name, target.name, type(e).__name__)
            return
        except FreeholdError as e:
            cause = cause_of(e)
        except asyncio.CancelledError:
            cause = "left"
        usage = added(usages)
        record.estimated = bool(cause) and target.price is not None
        record.attempted(target, cause, time.monotonic() - began, nano=record.cost(target, usage))
        if compare is not None and not cause:
            record.compared = compare("".join(texts))
        await record.book("shadow", target, usage, reason)


class Background:
    """The tasks of one server that no request waits for: rows of clients that left, shadows."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """Start work; a reference is kept until it ends."""
        task = asyncio.create_task(work, name=name or None)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def shielded(self, work: Coroutine[Any, Any, Any]) -> None:
        """Wait for work that is finished even where the caller is cancelled while it waits."""
        await asyncio.shield(self.begin(work))

    async def settled(self, name: str = "") -> None:
        """Wait for the work called `name`, or for all of it."""
        while waiting := [task for task in self._tasks if not name or task.get_name() == name]:
            await asyncio.gather(*waiting, return_exceptions=True)

    async def close(self, cancelled: str) -> None:
        """Cancel the work called `cancelled`, and wait for all."""
        for task in list(self._tasks):
            if task.get_name() == cancelled:
                task.cancel()
        await self.settled()


MEASURED_AT_ONCE = 2  # recordings that are decoded for their length: each takes a processor


class Measuring:
    """Decodes recordings for their length, a few at a time, each once."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(MEASURED_AT_ONCE)

    async def sound(self, recording: SpeechSource, most_s: float) -> MeasuredSound:
        """Return a recording's form and length. Raises UsageError for what is not one, or is too long."""
        async with self._turns:
            data = BytesIO()  # whose bytes are taken out without a copy
            async for piece in pieces_of(recording):
                data.write(piece)
            try:
                return await asyncio.to_thread(measure_sound, data.getvalue(), most_s)
            except UsageError as e:
                raise UsageError(e.message, e.hint, e.field or "file") from None


@dataclass
class GatewayParts:
    """Calls, books and bars, and what is learned of targets."""

    calls: TargetCalls
    books: Books
    bars: BarCheck | None = None
    texts: KeptTexts | None = None
    load: TargetLoad = field(default_factory=TargetLoad)
    breakers: Breakers = field(default_factory=Breakers)
    ratios: dict[str, TokenRatio] = field(default_factory=dict)
    cache: AnswerCache = field(default_factory=AnswerCache)
    background: Background = field(default_factory=Background)
    signatures: Signatures = field(default_factory=Signatures)
    measuring: Measuring = field(default_factory=Measuring)

    def __post_init__(self) -> None:
        self.shadows = Shadows(self.calls, self.books, self.background)
        self.students = StudentWatch(self.shadows.begin, self.bars if isinstance(self.bars, Bars) else None)

    def ratio(self, target: GatewayModel) -> TokenRatio:
        """Return what is known of a target's tokens."""
        return self.ratios.setdefault(target.name, TokenRatio())
