"""What all requests of a server with a gateway share: it outlives a reload of the file.

Among it is the work that outlives the request that began it, and shadows, which are most of it. A shadow asks another
target too, for a share of a route's requests: its answer is dropped, its figures go to the ledger. Never for a request
with a label, never before the client's answer is whole, a bounded number at a time, and none once the server stops.
What it costs is the house's: no key's budget pays for it. Knows one request at a time and no route.
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

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.serving import Job, Origin, SpeechSource
from freehold.base.types import Usage
from freehold.route.providers.contract import Cleared
from freehold.route.providers.openai.speech import pieces_of
from freehold.route.providers.signatures import Signatures
from freehold.route.router.answers import AnswerCache, KeptTexts
from freehold.route.router.bar import Bars
from freehold.route.router.calls import NEVER_SENT, TargetCalls, cause_of
from freehold.route.router.contract import BarCheck, Books
from freehold.route.router.gateway import GatewayModel, GatewayRoute
from freehold.route.router.graduation import StudentWatch
from freehold.route.router.record import RequestAbout, RequestRecord, added
from freehold.route.router.routing import Breakers, TargetLoad
from freehold.route.router.tokens import TokenRatio
from freehold.run.sounds.opening import MeasuredSound, measure_sound

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
