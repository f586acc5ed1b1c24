"""Turns at what all callers share: of each caller at threads, and of requests at the loop.

Knows callers and turns of the loop; knows no thread and no work.
Path: Bodies.turn, HttpCall.in_thread -> CallerTurns.of; Gate, Answering.whole -> LoopTurns.mine
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CallerTurns:
    """`most`: turns that one caller has at a time; its other requests wait, in order."""

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._gates: dict[str, tuple[asyncio.Semaphore, int]] = {}  # caller -> (gate, requests that it knows)

    @asynccontextmanager
    async def of(self, caller: str) -> AsyncIterator[None]:
        """Hold a turn of a caller."""
        gate, wanted = self._gates.get(caller) or (asyncio.Semaphore(self._most), 0)
        self._gates[caller] = (gate, wanted + 1)
        try:
            async with gate:
                yield
        finally:
            gate, wanted = self._gates.pop(caller)
            if wanted > 1:
                self._gates[caller] = (gate, wanted - 1)


class LoopTurns:
    """Lets `most` pieces of work of about a millisecond run in one turn of the loop; the others wait, in order.

    A hundred requests that come at once took 50 to 100 ms of one turn, and what came then, /health too, waited for all.
    """

    def __init__(self, most: int = 4) -> None:
        self._most, self._taken, self._counting = most, 0, False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def mine(self) -> None:
        """Return in a turn of the loop that has time for more work."""
        loop = asyncio.get_running_loop()
        if not self._counting:
            self._counting = True
            loop.call_soon(self._next)
        if self._taken < self._most and not self._waiting:
            self._taken += 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self) -> None:
        """Begin to count another turn."""
        self._taken = 0
        while self._waiting and self._taken < self._most:
            waiter = self._waiting.popleft()
            if not waiter.done():  # it is where its request was cancelled
                waiter.set_result(None)
                self._taken += 1
        self._counting = bool(self._taken)
        if self._counting:
            asyncio.get_running_loop().call_soon(self._next)
