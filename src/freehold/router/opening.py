"""Puts a server's gateway together: the file, the connections to providers, the ledger, the bars, around the engines.

Knows the parts and who has to be closed after whom; knows no request and no route.
Path: cli/serving/hybrid.py -> open_models -> GatewayModels of directory.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from freehold.errors import ModelNotFound
from freehold.providers import upstream
from freehold.providers.contract import Cleared, Provider, RemoteModel
from freehold.providers.hop import Hop
from freehold.router.answers import KeptTexts, texts_beside
from freehold.router.bar import Bars, Identities
from freehold.router.budgets import Budgets
from freehold.router.contract import RentedStream
from freehold.router.directory import GatewayModels
from freehold.router.gateway import Gateway
from freehold.router.labels import Classifier, prepare
from freehold.router.ledger.store import Ledger
from freehold.router.reading import LiveGateway
from freehold.serving import EmbedJob, Job, ModelManager, Stream, Vectors
from freehold.store import Store

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

    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        return await upstream.count(self._hop, cleared, model, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close every connection; answers in progress break."""
        await self._hop.close()
