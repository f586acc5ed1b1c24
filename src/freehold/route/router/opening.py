"""Puts a server's gateway together: the file, the connections to providers, the ledger, the bars, around the engines.

`LiveGateway` reads the file again when it changes. Knows the parts and who has to be closed after whom.

What comes of it is every model of the server by name: owned, rented, and routes, around the manager of our engines,
which it asks for what is owned. A request keeps the plan it began with; a reload makes another for those that come
after. Knows names and plans; knows no wire and no protocol.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.base.serving import (
    CounterTable,
    EmbedJob,
    Job,
    LoadedInfo,
    ModelHandle,
    ModelManager,
    Origin,
    SpeechJob,
    SpeechSource,
    StoredModel,
    Stream,
    Vectors,
)
from freehold.route.providers import upstream
from freehold.route.providers.contract import Cleared, Provider, RemoteModel, RentedTranscript
from freehold.route.providers.hop import Hop
from freehold.route.router.answers import KeptTexts, texts_beside
from freehold.route.router.bar import Bars, Identities
from freehold.route.router.contract import BarCheck, Books, RentedModels, RentedStream
from freehold.route.router.detect.apart import LongTexts
from freehold.route.router.gateway import Gateway
from freehold.route.router.handle import RoutedHandle
from freehold.route.router.labels import Asks, Classifier, prepare
from freehold.route.router.ledger.rows import LedgerRow, Reservation
from freehold.route.router.ledger.store import Ledger
from freehold.route.router.parts import NAME as SHADOW
from freehold.route.router.parts import GatewayParts, TargetCalls
from freehold.route.router.price import NANO
from freehold.route.router.reading import read
from freehold.route.router.record import Budgets
from freehold.route.router.routing import GatewayPlan, PlannedRoute
from freehold.route.router.toml.table import BadGateway, Mistake, Outside
from freehold.run.sounds.opening import MeasuredSound
from freehold.run.store import Store

# --- every model by name ---------------------------------------------------------------------------


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
        self.parts.students.keep()
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


# --- the gateway's parts ---------------------------------------------------------------------------

LEDGER = "ledger.sqlite"  # in the data folder
ASIDE_S = 20.0  # for a classifier's word


def ledger_path(gateway: Gateway, home: Path) -> Path:
    """Return where the ledger of a gateway.toml is."""
    return Path(gateway.ledger) if gateway.ledger else home / LEDGER


def check_packages(gateway: Gateway) -> None:
    """Raise UsageError where a package is missing that the file needs, before a server opens anything."""
    prepare(gateway)


class ServedGateway(GatewayModels):
    """The models of a server with a gateway, and what has to run beside them and be closed with them."""

    def __init__(self, engines: ModelManager, live: LiveGateway, ledger: Ledger, store: Store) -> None:
        self.live, self.ledger = live, ledger
        self._rented = ProviderModels(live.current.providers.values())
        super().__init__(
            engines,
            lambda: live.current,
            rented=self._rented,
            books=Budgets(ledger),
            bars=Bars(store.settings.home, Identities(store).of),
            asks=Classifier(self._ask),
            texts=KeptTexts(texts_beside(ledger.path)),
        )
        self._beside = [asyncio.create_task(live.watch()), asyncio.create_task(ledger.keep())]

    async def _ask(self, name: str, job: Job) -> Stream:
        """Start a classifier's job on a model of the file, which is owned."""
        gateway = self.live.current
        model = gateway.models.get(name)
        if model is None:  # the file was read again since the request began
            raise ModelNotFound(f"{name} is no longer in the file")
        if model.remote is None:
            return await (await self.engines.use(model.local)).start(job)
        cleared = Cleared(job, gateway.owned_places)
        return await self._rented.start(cleared, model.remote, first_token_s=ASIDE_S, timeout_s=ASIDE_S)

    def troubles(self) -> Sequence[str]:
        """Return a sentence for each failure that /health warns of."""
        return [each for each in (self.live.trouble, self.ledger.trouble) if each]

    async def close(self, drain_s: float) -> None:
        """Let rows be written, close the engines, the connections and the ledger."""
        for task in self._beside:
            task.cancel()
        try:
            await super().close(drain_s)
        finally:
            await self._rented.close()
            await self.ledger.close()


def open_models(engines: ModelManager, live: LiveGateway, store: Store) -> ServedGateway:
    """Open a server's gateway, in its event loop. Raises LedgerUnavailable or StoreError."""
    ledger = Ledger.open(ledger_path(live.current, store.settings.home))
    return ServedGateway(engines, live, ledger, store)


# --- gateway.toml of a running server ---------------------------------------------------------------
# Read again when it changes; a file with mistakes is not put in force. A request keeps the Gateway it began with, as
# Gateways are never changed but replaced. The file is looked at as http/core/keys.py looks at the keys, and read once
# two looks found it unchanged, so that a file in the middle of being written is not taken for a bad one.

LOOK_S = 0.5  # between two looks at the file
_log = logging.getLogger("freehold.route.router")

Mark = tuple[int, ...]
Changed = Callable[[Gateway], None]


class LiveGateway:
    """The Gateway in force. Raises BadGateway if the file is not sound at the start."""

    def __init__(self, path: Path, outside: Outside | None = None) -> None:
        self.path, self._outside = path, outside or Outside()
        self._mark = self._seen = self._marked()
        self.current: Gateway = self._read()
        self.trouble = ""  # why the file's latest state is not in force; "" while it is
        self._changed: list[Changed] = []

    def on_change(self, changed: Changed) -> None:
        """Call `changed` with each Gateway that takes the place of another; in the loop of `watch`."""
        self._changed.append(changed)

    async def watch(self) -> None:
        """Look at the file again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """Read the file if it changed, but not since the last look; return whether another Gateway is in force."""
        mark = self._marked()
        stands, self._seen = mark == self._seen, mark
        if mark == self._mark or not stands:
            return False
        self._mark = mark
        try:
            gateway = await asyncio.to_thread(self._reread)
        except BadGateway as e:
            count = len(e.mistakes)
            return self._stays("has a mistake" if count == 1 else f"has {count} mistakes", e.message)
        except FreeholdError as e:
            return self._stays("could not be read", e.message)
        except Exception as e:  # whatever a keyring raises: the next change is read all the same
            return self._stays("could not be read", type(e).__name__)
        return self._take(gateway)

    def _stays(self, what: str, why: str) -> bool:
        self.trouble = f"the gateway's file {what} and is in force as it was; the log says more"
        _log.error("%s stays as it was: %s", self.path, why)
        return False

    def _take(self, gateway: Gateway) -> bool:
        self.trouble = ""
        if gateway == self.current:  # keys are compared too: touching the file takes a new one
            return False
        self.current = gateway
        _log.info("%s was read again: %s", self.path, gateway.digest[:12])
        for changed in self._changed:
            changed(gateway)
        return True

    def _reread(self) -> Gateway:
        gateway = self._read()
        if gateway.ledger == self.current.ledger:
            prepare(gateway)  # in this thread
            return gateway
        moved = Mistake(0, "ledger", "the ledger cannot move while the server runs", "start the server again")
        raise BadGateway(str(self.path), (moved,))

    def _read(self) -> Gateway:
        # A pipe without a writer would wait for one for ever.
        if self.path.exists() and not self.path.is_file():
            what = "it is a folder" if self.path.is_dir() else "it is a pipe or a device"
            wrong = Mistake(0, "", f"{what}, and is read again when it changes", "name an ordinary file")
            raise BadGateway(str(self.path), (wrong,))
        return read(self.path, self._outside)

    def _marked(self) -> Mark:
        """Return what changes when the file does; () where there is none."""
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode, status.st_uid


# --- rented models over one set of connections, as routes ask for them ------------------------------


class ProviderModels:
    """The models of all providers; one event loop's."""

    def __init__(self, providers: Iterable[Provider] = ()) -> None:
        self._hop = Hop(providers)

    def keep(self, providers: Iterable[Provider]) -> None:
        self._hop.keep(providers)

    async def start(
        self, cleared: Cleared[Job], model: RemoteModel, *, first_token_s: float, timeout_s: float
    ) -> RentedStream:
        return await upstream.start(
            self._hop,
            cleared,
            model,
            first_token_s=first_token_s,
            timeout_s=timeout_s,
            stream=not cleared.work.whole,
        )

    async def embed(self, cleared: Cleared[EmbedJob], model: RemoteModel, *, timeout_s: float) -> Vectors:
        return await upstream.embed(self._hop, cleared, model, timeout_s=timeout_s)

    async def hear(
        self,
        cleared: Cleared[SpeechJob],
        model: RemoteModel,
        recording: SpeechSource,
        sound: MeasuredSound,
        *,
        timeout_s: float,
    ) -> RentedTranscript:
        return await upstream.hear(self._hop, cleared, model, recording, sound, timeout_s=timeout_s)

    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        return await upstream.count(self._hop, cleared, model, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close every connection; answers in progress break."""
        await self._hop.close()
