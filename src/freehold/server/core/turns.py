"""Turns of callers at threads that all of them share: no caller takes more than a few at a time.

Knows callers; knows no thread and no work. Path: Bodies.turn, HttpCall.in_thread -> CallerTurns.of
"""

from __future__ import annotations

import asyncio
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
