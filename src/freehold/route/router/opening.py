"""Puts a server's gateway together: the file, the connections to providers, the ledger, the bars, around the engines.

`LiveGateway` reads the file again when it changes. Knows the parts and who has to be closed after whom; knows no
request and no route.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from freehold.base.errors import FreeholdError, ModelNotFound
from freehold.base.serving import (
    EmbedJob,
    Job,
    ModelManager,
    SpeechJob,
    SpeechSource,
    Stream,
    Vectors,
)
from freehold.route.providers import upstream
from freehold.route.providers.contract import Cleared, Provider, RemoteModel, RentedTranscript
from freehold.route.providers.hop import Hop
from freehold.route.router.answers import KeptTexts, texts_beside
from freehold.route.router.bar import Bars, Identities
from freehold.route.router.contract import RentedStream
from freehold.route.router.directory import GatewayModels
from freehold.route.router.gateway import Gateway
from freehold.route.router.labels import Classifier, prepare
from freehold.route.router.ledger.store import Ledger
from freehold.route.router.reading import read
from freehold.route.router.record import Budgets
from freehold.route.router.toml.outside import Outside
from freehold.route.router.toml.table import BadGateway, Mistake
from freehold.run.sounds.opening import MeasuredSound
from freehold.run.store import Store

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
