"""Money of keys' budgets while requests are in flight: which request gets it, waits for it, or is refused.

The ledger reserves in one statement, so that no number of requests at once exceeds a budget. A request that would fit
if those in flight cost less than they may is worth a short wait: reservations are for the dearest answer, and most
answers cost less. What is left unusable at a window's end is less than one such answer. Keys without a budget cost
no statement here. Knows amounts; knows no price and no target.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

from freehold.base.errors import BudgetSpent
from freehold.route.router.ledger.rows import LedgerRow, Reservation
from freehold.route.router.ledger.store import Ledger

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
