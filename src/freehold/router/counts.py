"""Counts of the gateway for /metrics: requests, attempts and dollars, by names of the file and of the store.

Fed by the rows that the ledger takes, so that both say the same. Knows rows, and no text.
Path: directory.py -> CountedBooks -> budgets.py; GET /metrics -> GatewayModels.counters -> CountedBooks.tables
"""

from __future__ import annotations

from collections import Counter

from freehold.router.contract import Books
from freehold.router.ledger.rows import LedgerRow, Reservation
from freehold.router.price import NANO
from freehold.serving import CounterTable


class CountedBooks:
    """Books that count every row they take."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._attempts: Counter[tuple[str, ...]] = Counter()
        self._nano: Counter[tuple[str, ...]] = Counter()

    async def reserve(self, wanted: Reservation, *, wait_s: float = 0.0) -> None:
        await self._books.reserve(wanted, wait_s=wait_s)

    async def change(self, wanted: Reservation) -> None:
        await self._books.change(wanted)

    async def sent(self, row_id: str) -> None:
        await self._books.sent(row_id)

    async def ready(self) -> None:
        await self._books.ready()

    async def book(self, row: LedgerRow) -> None:
        await self._books.book(row)
        self._requests[row.asked, row.target, row.outcome] += 1
        for attempt in row.attempts:
            self._attempts[attempt.target, attempt.cause or "answered"] += 1
            if attempt.nano:
                self._nano[attempt.target,] += attempt.nano

    def tables(self) -> tuple[CounterTable, ...]:
        """Return the counts for a scrape."""
        dollars = {labels: nano / NANO for labels, nano in self._nano.items()}
        return (
            CounterTable(
                "freehold_gateway_requests",
                "Requests booked, by the name asked for, the target that answered, and how they ended.",
                ("route", "target", "outcome"),
                dict(self._requests),
            ),
            CounterTable(
                "freehold_gateway_attempts",
                "Requests sent to targets, by why they failed.",
                ("target", "cause"),
                dict(self._attempts),
            ),
            CounterTable("freehold_gateway_dollars", "Cost in US dollars.", ("target",), dollars),
        )
