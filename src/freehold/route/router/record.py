"""One request's entry in the ledger while it is made: its reservations, attempts and costs, and its one row.

Knows prices and the books; no text passes through it. A row is booked once, whatever ends the request.

Money of keys' budgets while requests are in flight: which request gets it, waits for it, or is refused. The ledger
reserves in one statement, so that no number of requests at once exceeds a budget. A request that would fit if those in
flight cost less than they may is worth a short wait: reservations are for the dearest answer, and most answers cost
less. What is left unusable at a window's end is less than one such answer. Keys without a budget cost no statement.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from freehold.base.errors import BudgetSpent, LedgerUnavailable
from freehold.base.serving import Origin
from freehold.base.types import Usage
from freehold.route.providers.contract import SetLabel
from freehold.route.router.contract import Books
from freehold.route.router.gateway import GatewayModel, SpendLimit
from freehold.route.router.ledger.rows import (
    NOTHING,
    Attempt,
    Candidate,
    Intent,
    LedgerRow,
    Outcome,
    Reservation,
    row_id,
)
from freehold.route.router.ledger.store import Ledger
from freehold.route.router.routing import TargetChoice


@dataclass(frozen=True, slots=True)
class RequestAbout:
    """What a request asks for, as its row says it."""

    name: str
    task: str = ""
    batch: bool = False  # an ordinary request of a batch's line: it costs the ordinary price


class RequestRecord:
    """Made when a request arrives. `limit`: of its key's budget; None where it has none."""

    def __init__(
        self,
        origin: Origin,
        about: RequestAbout,
        books: Books,
        limit: SpendLimit | None = None,
        parent: str = "",
    ) -> None:
        self.at, self.started = time.time(), time.monotonic()
        self.id = row_id(self.at)
        self.origin, self.about, self.parent = origin, about, parent
        self.labels: tuple[SetLabel, ...] = ()
        self.choice: TargetChoice | None = None
        self.attempts: list[Attempt] = []
        self.warnings: list[str] = []
        self.compared = ""  # of a shadow: how its answer compares with the one that the client got
        self.estimated = self.left_house = self.booked = False
        self.first_s = 0.0
        self.sound_s = 0.0  # of a recording
        self._books, self.limit = books, limit
        self.risked = 0  # nano-dollars that failed attempts may have cost beyond what is noted of them
        self._held: Reservation | None = None  # of the ledger; it may be of nothing by now

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels' names, each once, sorted."""
        return tuple(sorted({label.name for label in self.labels}))

    @property
    def spent(self) -> int:
        """Nano-dollars of the attempts so far; what was thrown away is booked, in rows of its own."""
        return sum(attempt.nano for attempt in self.attempts)

    @property
    def holds(self) -> bool:
        """Whether the ledger has a reservation for this request."""
        return self._held is not None

    @property
    def passed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.started

    async def reserve(
        self, nano: int, target: GatewayModel, *, sent: bool = True, wait_s: float = 0.0
    ) -> None:
        """Set money aside until there are `nano` beside what was or may be spent, and see that a row can be written.

        `sent` False: a target that costs nothing is asked first. `wait_s`: for money of requests in flight.
        Raises BudgetSpent, LedgerUnavailable. Without a budget nothing is set aside.
        """
        need, held = nano + self.spent + self.risked, self._held
        if self.limit is None or need <= (0 if held is None else held.nano):
            if held is None:
                await self._books.ready()
            return
        if held is None:
            about = self._about(target)
            wanted = Reservation(self.id, self.origin.key, self.limit, need, self.at, sent, about)
            await self._books.reserve(wanted, wait_s=wait_s)
        else:
            wanted = replace(held, nano=need)
            await self._books.change(wanted)
        self._held = wanted

    async def leaves(self) -> None:
        """Note in the ledger that a provider may charge from now on, should this process be killed."""
        if self._held is not None and not self._held.sent:
            await self._books.sent(self.id)
            self._held = replace(self._held, sent=True)

    async def keep(self, nano: int) -> None:
        """Give back what is set aside beyond `nano` beside what was or may be spent: the target is known now."""
        need = nano + self.spent + self.risked
        if self._held is not None and need < self._held.nano:
            wanted = replace(self._held, nano=need)
            await self._books.change(wanted)
            self._held = wanted

    def _about(self, target: GatewayModel | None) -> Intent:
        """Return what is known before an answer: whose request it is, and which target it goes to."""
        origin, price = self.origin, None if target is None else target.price
        return Intent(
            request_id=origin.request_id,
            answer_id=origin.answer_id,
            door=origin.door,
            asked=self.about.name,
            target="" if target is None else target.name,
            place="" if target is None else target.place,
            labels=self.labels,
            task=self.about.task,
            price_version="" if price is None else price.version,
        )

    def cost(self, target: GatewayModel, usage: Usage) -> int:
        """Return what a target asks for an answer. A batch's lines are ordinary requests, at the ordinary price."""
        return target.price.cost(usage, self.at) if target.price is not None else 0

    def attempted(
        self, target: GatewayModel, cause: str, seconds: float, *, status: int = 0, nano: int = 0
    ) -> None:
        """Note an attempt that was sent, with what it cost."""
        self.left_house = self.left_house or not target.owned
        self.attempts.append(Attempt(target.name, target.place, cause, status, seconds, nano))

    async def book(
        self,
        outcome: Outcome,
        target: GatewayModel | None = None,
        usage: Usage = NOTHING,
        finish_reason: str = "",
        upstream_id: str = "",
    ) -> None:
        """Write the row and settle the reservations, once. Raises LedgerUnavailable: then it may be called again."""
        if self.booked:
            return
        self.booked = True
        row = self._row(outcome, target, usage, finish_reason, upstream_id)
        try:
            await self._books.book(row)
        except BaseException:
            self.booked = False
            raise

    async def book_quietly(self, outcome: Outcome, target: GatewayModel | None = None) -> None:
        """Book a request that has failed or was left: its own error goes to the client, not the ledger's.

        The ledger keeps a row that it could not write, and says so in its log.
        """
        with suppress(LedgerUnavailable):
            await self.book(outcome, target)

    def beside(self, outcome: Outcome, target: GatewayModel, usage: Usage, nano: int) -> LedgerRow:
        """Return the row of an answer that was thrown away, which has this one as its parent."""
        attempt = Attempt(target.name, target.place, "", 0, self.passed_s, nano)
        row = self._row(outcome, target, usage, "", "")
        return replace(
            row,
            id=row_id(self.at),
            attempts=(attempt,),
            nano=nano,
            parent=self.id,
            candidates=(),
            answer_id="",
        )

    async def book_beside(self, row: LedgerRow) -> None:
        """Write a row of `beside`. What it cost is spent, and no more set aside for this request."""
        await self._books.book(row)
        if self._held is not None:
            await self.keep(max(self._held.nano - row.nano - self.spent - self.risked, 0))

    def _row(
        self,
        outcome: Outcome,
        target: GatewayModel | None,
        usage: Usage,
        finish_reason: str,
        upstream_id: str,
    ) -> LedgerRow:
        tried = [attempt.target for attempt in self.attempts]
        candidates = () if self.choice is None else self.choice.candidates(tried)
        if self.compared and target is not None:
            candidates = (Candidate(target.name, True, self.compared),)
        return LedgerRow(
            **self._about(target).values(),
            id=self.id,
            at=self.at,
            key=self.origin.key,
            owned=target is not None and target.owned,
            candidates=candidates,
            attempts=tuple(self.attempts),
            usage=usage,
            nano=self.spent,
            estimated=self.estimated,
            batch=self.about.batch,
            outcome=outcome,
            finish_reason=finish_reason,
            first_s=self.first_s,
            whole_s=self.passed_s,
            terms="" if target is None else target.terms,
            may_teach=None if target is None else target.may_teach,
            upstream_id=upstream_id,
            left_house=self.left_house,
            parent=self.parent,
            sound_ms=round(1000 * self.sound_s),
        )


def added(usages: Sequence[Usage]) -> Usage:
    """Return what several answers to one prompt used: the prompt once, the answers together."""
    if len(usages) == 1:
        return usages[0]
    return Usage(
        max((u.prompt_tokens for u in usages), default=0),
        sum(u.completion_tokens for u in usages),
        cached_tokens=max((u.cached_tokens for u in usages), default=0),
        written_tokens=max((u.written_tokens for u in usages), default=0),
        written_hour_tokens=max((u.written_hour_tokens for u in usages), default=0),
        thought_tokens=sum(u.thought_tokens for u in usages),
    )


# --- keys' budgets ---------------------------------------------------------------------------------

ROOM_WAIT_S = 10.0  # for answers in flight that end, and give back what they did not cost
LOOK_S = 1.0  # room that another process makes is looked for so often


class Budgets:
    """Implements contract.Books: a ledger, and the requests that wait for money in it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def reserve(self, wanted: Reservation, *, wait_s: float = 0.0) -> None:
        """Reserve money for a row. Raises BudgetSpent at once where waiting cannot help, else after `wait_s`."""
        until, first = time.monotonic() + wait_s, False
        try:
            while True:
                try:
                    return await self.ledger.reserve(wanted)
                except BudgetSpent as e:
                    left = until - time.monotonic()
                    if e.spent + wanted.nano > wanted.limit.nano or left <= 0:
                        raise
                await self._room(wanted.key, min(left, LOOK_S), first=first)
                first = True
        finally:
            if wait_s:
                self._wake(wanted.key)  # there may be room for the next one too, or it can be refused at once

    async def change(self, wanted: Reservation) -> None:
        await self.ledger.change(wanted)
        self._wake(wanted.key)

    async def sent(self, row_id: str) -> None:
        await self.ledger.sent(row_id)

    async def ready(self) -> None:
        await self.ledger.ready()

    async def book(self, row: LedgerRow) -> None:
        """Commit a row and settle its reservation; the first request that waits for money tries again."""
        await self.ledger.book(row)
        self._wake(row.key)

    async def _room(self, key: str, wait_s: float, *, first: bool) -> None:
        """Wait until a reservation is settled, in the order of arrival."""
        queue = self._waiting.setdefault(key, deque())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (queue.appendleft if first else queue.append)(turn)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await turn
        finally:
            with suppress(ValueError):
                queue.remove(turn)
            if not queue:
                self._waiting.pop(key, None)

    def _wake(self, key: str) -> None:
        if key not in self._waiting:
            return
        queue = self._waiting[key]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
