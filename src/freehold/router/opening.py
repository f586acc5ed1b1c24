"""Puts a server's gateway together: the file, the connections to providers, the ledger, the bars, around the engines.

Knows the parts and who has to be closed after whom; knows no request and no route.
Path: cli/serving/hybrid.py -> open_models -> GatewayModels of directory.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from freehold.errors import UsageError
from freehold.providers import upstream
from freehold.providers.cleared import Cleared
from freehold.providers.contract import Provider, RemoteModel
from freehold.providers.hop import Hop, http_client
from freehold.router.bar import Bars
from freehold.router.budgets import Budgets
from freehold.router.classifier import Classifier
from freehold.router.contract import RentedStream
from freehold.router.directory import GatewayModels
from freehold.router.gateway import Gateway
from freehold.router.identity import Identities
from freehold.router.ledger.store import Ledger
from freehold.router.live import LiveGateway
from freehold.serving import EmbedJob, Job, ModelManager, Stream, Vectors
from freehold.store import Store

LEDGER = "ledger.sqlite"  # in the data folder
ASIDE_S = 20.0  # for a classifier's word


class HopModels:
    """The rented models of a server, over one Hop."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop

    def keep(self, providers: Iterable[Provider]) -> None:
        """Give up the connections of every other provider."""
        self.hop.keep(providers)

    async def start(
        self,
        cleared: Cleared[Job],
        model: RemoteModel,
        *,
        first_token_s: float,
        timeout_s: float,
        stream: bool = True,
    ) -> RentedStream:
        """Return an answer whose first chunk has come."""
        return await upstream.start(
            self.hop, cleared, model, first_token_s=first_token_s, timeout_s=timeout_s, stream=stream
        )

    async def embed(self, cleared: Cleared[EmbedJob], model: RemoteModel, *, timeout_s: float) -> Vectors:
        """Return unit vectors."""
        return await upstream.embed(self.hop, cleared, model, timeout_s=timeout_s)

    async def count(self, cleared: Cleared[Job], model: RemoteModel, *, timeout_s: float) -> int | None:
        """Return the provider's count of a prompt; None where it has no door for it."""
        return await upstream.count(self.hop, cleared, model, timeout_s=timeout_s)


def ledger_path(gateway: Gateway, file: Path, home: Path) -> Path:
    """Return where the ledger of a gateway.toml is. Raises UsageError for what this installation cannot open."""
    if "://" in gateway.ledger:
        raise UsageError(
            "a ledger in PostgreSQL cannot be opened", "leave ledger out for a file in the data folder"
        )
    return file.absolute().parent / gateway.ledger if gateway.ledger else home / LEDGER


class ServedGateway(GatewayModels):
    """The models of a server with a gateway, and what has to run beside them and be closed with them."""

    def __init__(
        self, engines: ModelManager, live: LiveGateway, hop: Hop, ledger: Ledger, store: Store
    ) -> None:
        self.live, self.ledger = live, ledger
        self._rented = HopModels(hop)
        super().__init__(
            engines,
            lambda: live.current,
            rented=self._rented,
            books=Budgets(ledger),
            bars=Bars(store.settings.home, Identities(store).of),
            asks=Classifier(self._ask),
        )
        self._beside = [asyncio.create_task(live.watch()), asyncio.create_task(ledger.keep())]

    async def _ask(self, name: str, job: Job) -> Stream:
        """Start a classifier's job on a model of the file, which is owned."""
        gateway = self.live.current
        model = gateway.models[name]
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
        await super().close(drain_s)
        await self._rented.hop.close()
        await self.ledger.close()


def open_models(engines: ModelManager, live: LiveGateway, store: Store) -> ServedGateway:
    """Open a server's gateway, in its event loop. Raises LedgerUnavailable, StoreError or UsageError."""
    if live.current.providers:
        http_client()  # before anything is opened: a missing package is told at the start
    ledger = Ledger.open(ledger_path(live.current, live.path, store.settings.home))
    return ServedGateway(engines, live, Hop(live.current.providers.values()), ledger, store)
