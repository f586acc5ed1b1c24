"""Every model of a server with a gateway: owned, rented, and routes, by name.

Around the manager of our engines, which it asks for what is owned. A request keeps the plan it began with; a reload
makes another for those that come after. Knows names and plans; knows no wire and no protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from freehold.base.serving import CounterTable, LoadedInfo, ModelHandle, ModelManager, Origin, StoredModel
from freehold.route.router.answers import KeptTexts
from freehold.route.router.calls import TargetCalls
from freehold.route.router.contract import BarCheck, Books, RentedModels
from freehold.route.router.detect.apart import LongTexts
from freehold.route.router.gateway import Gateway
from freehold.route.router.handle import RoutedHandle
from freehold.route.router.labels import Asks
from freehold.route.router.ledger.rows import LedgerRow, Reservation
from freehold.route.router.parts import NAME as SHADOW
from freehold.route.router.parts import GatewayParts
from freehold.route.router.price import NANO
from freehold.route.router.routing import GatewayPlan, PlannedRoute


class OriginModels:
    """The models as one request sees them."""

    def __init__(self, parts: GatewayParts, engines: ModelManager, plan: GatewayPlan, origin: Origin) -> None:
        self._parts, self._engines, self._plan, self._origin = parts, engines, plan, origin

    async def names(self) -> Sequence[StoredModel]:
        """List the file's names and the store's."""
        named = [StoredModel(name, 0, places=places) for name, places in self._plan.names.items()]
        known = {each.name for each in named}
        return [*named, *(each for each in await self._engines.names() if each.name not in known)]

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        """Return the model or route; loads it where one model of the store is all there is to ask."""
        planned = self._plan.route(name) or self._plan.owned(name)
        owned = None
        if self._is_owned(planned):
            owned = await self._engines.use(planned.targets[0].local, keep_alive)
            if self._plan.route(name) is None and owned.name != name:
                planned = self._plan.owned(owned.name)
        return RoutedHandle(
            self._parts, self._plan, planned, self._origin, keep_alive=keep_alive, owned=owned
        )

    async def name_of(self, name: str) -> str:
        planned = self._plan.route(name)
        if planned is None or self._is_owned(planned):
            return await self._engines.name_of(planned.targets[0].local if planned is not None else name)
        return planned.name

    async def stamp_of(self, name: str) -> str:
        planned = self._plan.route(name) or self._plan.owned(name)
        return await self._engines.stamp_of(planned.targets[0].local) if self._is_owned(planned) else ""

    def loaded(self) -> Sequence[LoadedInfo]:
        return self._engines.loaded()

    def _is_owned(self, planned: PlannedRoute) -> bool:
        return len(planned.targets) == 1 and planned.targets[0].remote is None


class GatewayModels:
    """The ModelManager of a server with a gateway.

    `current` returns the file in force, the same object until it changes.
    """

    def __init__(
        self,
        engines: ModelManager,
        current: Callable[[], Gateway],
        *,
        books: Books,
        rented: RentedModels | None = None,
        bars: BarCheck | None = None,
        asks: Asks | None = None,
        texts: KeptTexts | None = None,
    ) -> None:
        self.engines, self._current, self._asks = engines, current, asks
        self._books = CountedBooks(books)
        self.parts = GatewayParts(TargetCalls(engines, rented), self._books, bars, texts)
        self._long_texts = LongTexts()
        self._plan = GatewayPlan(current(), asks, self._long_texts)

    @property
    def plan(self) -> GatewayPlan:
        """The file in force, resolved."""
        gateway = self._current()
        if gateway is not self._plan.gateway:
            self._plan = GatewayPlan(gateway, self._asks, self._long_texts)
            if self.parts.calls.rented is not None:
                self.parts.calls.rented.keep(gateway.providers.values())
        return self._plan

    def asked_by(self, origin: Origin) -> OriginModels:
        return OriginModels(self.parts, self.engines, self.plan, origin)

    async def names(self) -> Sequence[StoredModel]:
        return await self.asked_by(Origin()).names()

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        return await self.asked_by(Origin()).use(name, keep_alive)

    async def name_of(self, name: str) -> str:
        return await self.asked_by(Origin()).name_of(name)

    async def stamp_of(self, name: str) -> str:
        return await self.asked_by(Origin()).stamp_of(name)

    def loaded(self) -> Sequence[LoadedInfo]:
        return self.engines.loaded()

    def counters(self) -> Sequence[CounterTable]:
        return (*self.engines.counters(), *self._books.tables())

    def loading(self) -> Mapping[str, tuple[int, int]]:
        return self.engines.loading()

    async def unload(self, name: str) -> None:
        await self.engines.unload(self._local(name))

    async def retire(self, name: str) -> None:
        await self.engines.retire(name)

    async def add_adapter(self, name: str, adapter: str, path: Path) -> None:
        await self.engines.add_adapter(self._local(name), adapter, path)

    async def remove_adapter(self, name: str, adapter: str) -> None:
        await self.engines.remove_adapter(self._local(name), adapter)

    def _local(self, name: str) -> str:
        """Return the store's name of a model of the file."""
        planned = self.plan.route(name)
        if planned is not None and len(planned.targets) == 1 and planned.targets[0].local:
            return planned.targets[0].local
        return name

    async def close(self, drain_s: float) -> None:
        """End the shadows, let rows be written, and close the engines."""
        self.parts.shadows.closed = True
        await self.parts.background.close(SHADOW)
        self._long_texts.close()
        await self.engines.close(drain_s)


# --- counts of the gateway for /metrics -------------------------------------------------------------
# Requests, attempts and dollars, by names of the file and of the store.
# Fed by the rows that the ledger takes, so that both say the same.


class CountedBooks:
    """Books that count every row they take."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._attempts: Counter[tuple[str, ...]] = Counter()
        self._nano: Counter[tuple[str, ...]] = Counter()
        self._sound_ms: Counter[tuple[str, ...]] = Counter()

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
        if row.sound_ms and row.target:
            self._sound_ms[row.target,] += row.sound_ms
        for attempt in row.attempts:
            self._attempts[attempt.target, attempt.cause or "answered"] += 1
            if attempt.nano:
                self._nano[attempt.target,] += attempt.nano

    def tables(self) -> tuple[CounterTable, ...]:
        """Return the counts for a scrape."""
        dollars = {labels: nano / NANO for labels, nano in self._nano.items()}
        seconds = {labels: ms / 1000 for labels, ms in self._sound_ms.items()}
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
            CounterTable(
                "freehold_gateway_sound_seconds", "Seconds of recordings, by target.", ("target",), seconds
            ),
        )
