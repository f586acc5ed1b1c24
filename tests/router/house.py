"""A whole gateway for tests: scripted engines, rented models, a ledger on disk, and on request a server around them.

`within(folder, text, ...)` for tests that call the models in one event loop; `open_house(folder, text, ...)` for a
server on loopback in a thread. Both read a gateway.toml, and take `rented` or real providers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2

from freehold.base.serving import Job, Origin, Stream
from freehold.base.types import Chunk, Message
from freehold.route.router.answers import KeptTexts, texts_beside
from freehold.route.router.contract import BarCheck, RentedModels
from freehold.route.router.gateway import Gateway
from freehold.route.router.labels import Asks
from freehold.route.router.ledger import rows
from freehold.route.router.ledger.rows import LedgerRow
from freehold.route.router.ledger.store import Ledger
from freehold.route.router.opening import GatewayModels
from freehold.route.router.reading import read_text
from freehold.route.router.record import Budgets
from freehold.route.router.toml.table import Outside
from freehold.serve.http.core.keys import Key, Ring, hashed
from freehold.serve.http.core.sockets import bind_tcp
from freehold.serve.http.serve import Doors, ServerSettings
from tests.http.fakes import FakeModels, Script
from tests.router.rented import FakeRented

ENVIRONMENT = {"REMOTE_KEY": "sk-remote-0123456789abcdef"}  # of every key that a file names
# A provider far away, a machine of the house, and models of both; an engine's model is in every file that names it.
FILE = """
[providers.far]
kind = "openai"
url = "http://127.0.0.1:9/v1"
key = "env:REMOTE_KEY"
[providers.box]
kind = "openai-compatible"
url = "http://127.0.0.1:9/v1"
owned = true
[models.big]
provider = "far"
model = "big"
price = { input = 1.0, cached = 0.1, output = 10.0 }
[models.small]
provider = "far"
model = "small"
price = { input = 0.1, output = 1.0 }
[models.box-70b]
provider = "box"
model = "box-70b"
[models.own]
local = "fake:1b"
[labels.private]
stay = "owned"
"""


def job(text: str = "What is two and two?", **fields: Any) -> Job:
    return Job(messages=(Message("user", text),), **fields)


def gateway_of(text: str, environment: dict[str, str] | None = None, base: str = FILE) -> Gateway:
    return read_text(base + text, Outside(environment={**ENVIRONMENT, **(environment or {})}))


def rows_of(ledger: Path | Ledger) -> list[LedgerRow]:
    """Return every row, in the order of their requests."""
    import sqlite3

    path = ledger if isinstance(ledger, Path) else ledger.path
    db = sqlite3.connect(path, timeout=10)
    try:
        return [rows.row_of(row) for row in db.execute(f"SELECT {rows.NAMES} FROM requests ORDER BY at, id")]
    finally:
        db.close()


@dataclass
class Within:
    """A gateway in the test's own event loop."""

    models: GatewayModels
    engines: FakeModels
    ledger: Ledger
    rented: Any  # FakeRented, unless a test gave others
    gateway: Gateway

    async def start(self, name: str, asked: Job | None = None, **origin: Any) -> Stream:
        handle = await self.models.asked_by(Origin(**{"request_id": "r", "answer_id": "a", **origin})).use(
            name
        )
        return await handle.start(asked or job())

    async def ask(self, name: str, asked: Job | None = None, **origin: Any) -> list[Chunk]:
        """Return all chunks of an answer."""
        stream = await self.start(name, asked, **origin)
        try:
            return [chunk async for _, chunk in stream]
        finally:
            await stream.aclose()

    async def text(self, name: str, asked: Job | None = None, **origin: Any) -> str:
        return "".join(chunk.text for chunk in await self.ask(name, asked, **origin))

    @property
    def rows(self) -> list[LedgerRow]:
        return rows_of(self.ledger)

    def reload(self, text: str) -> None:
        self.gateway = gateway_of(text)


@asynccontextmanager
async def within(
    folder: Path,
    text: str = "",
    *,
    script: Script | None = None,
    rented: Any = None,
    bars: BarCheck | None = None,
    asks: Asks | None = None,
    base: str = FILE,
) -> AsyncIterator[Within]:
    ledger = Ledger.open(folder / "ledger.sqlite")
    engines, rented = FakeModels(script), rented or FakeRented()
    gateway = gateway_of(text, base=base)
    held: list[Within] = []
    models = GatewayModels(
        engines,
        lambda: held[0].gateway if held else gateway,
        rented=rented,
        books=Budgets(ledger),
        bars=bars,
        asks=asks,
        texts=KeptTexts(texts_beside(ledger.path)),
    )
    held.append(Within(models, engines, ledger, rented, gateway))
    try:
        yield held[0]
        await models.parts.background.settled()
    finally:
        await models.close(0)
        await ledger.close()


@dataclass
class House:
    """A server with a gateway, and how to reach it. `gateway` may be replaced while it runs."""

    gateway: Gateway
    engines: FakeModels
    rented: RentedModels | None
    folder: Path
    up: threading.Event = field(default_factory=threading.Event)
    models: GatewayModels = field(init=False)
    doors: Doors = field(init=False)
    loop: asyncio.AbstractEventLoop = field(init=False)
    thread: threading.Thread = field(init=False)
    failed: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.doors.url

    @cached_property
    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    @property
    def rows(self) -> list[LedgerRow]:
        return rows_of(self.folder / "ledger.sqlite")

    def chat(self, model: str, text: str = "What is two and two?", **fields: Any) -> httpx2.Response:
        """Ask by OpenAI's chat route. `headers`: of the request."""
        headers = fields.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)

    def end(self) -> None:
        if "client" in self.__dict__:
            self.client.close()
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(lambda: self.doors.stop(now=True))
        self.thread.join(60)
        assert not self.thread.is_alive()


Rent = Callable[[], RentedModels]


def open_house(
    folder: Path,
    text: str = "",
    *,
    script: Script | None = None,
    rented: RentedModels | None = None,
    rent: Rent | None = None,
    bars: BarCheck | None = None,
    keys: dict[str, str] | None = None,
    base: str = FILE,
    environment: dict[str, str] | None = None,
    **settings: Any,
) -> House:
    """Serve a gateway on loopback. `keys`: name -> secret; `rent` makes the rented models inside the loop."""
    house = House(gateway_of(text, environment, base), FakeModels(script), rented, folder)
    tcp = bind_tcp("127.0.0.1", 0)
    ring = Ring(Key(name=name, sha256=hashed(secret.encode())) for name, secret in (keys or {}).items())

    async def main() -> None:
        ledger = Ledger.open(folder / "ledger.sqlite")
        keep = asyncio.create_task(ledger.keep())
        if rent is not None:
            house.rented = rent()
        house.models = GatewayModels(
            house.engines,
            lambda: house.gateway,
            rented=house.rented or FakeRented(),
            books=Budgets(ledger),
            bars=bars,
        )
        house.loop = asyncio.get_running_loop()
        given = {"drain_s": 5.0, "home": folder, "keys": ring, **settings}
        house.doors = Doors(house.models, ServerSettings(**given))
        try:
            await house.doors.open(tcp, None, house.up.set)
        finally:
            keep.cancel()
            close = getattr(house.rented, "close", None)
            if close is not None:
                with suppress(Exception):
                    await close()
            await ledger.close()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as e:
            house.failed.append(e)
            house.up.set()

    house.thread = threading.Thread(target=run)
    house.thread.start()
    assert house.up.wait(60)
    if house.failed:
        raise house.failed[0]
    return house


def at_standin(url: str, kind: str = "openai") -> str:
    """Return a file whose rented models are at one url: `big` and `small` at the provider far, `box-70b` owned."""
    return f"""
[providers.far]
kind = "{kind}"
url = "{url}"
key = "env:REMOTE_KEY"
[providers.box]
kind = "openai-compatible"
url = "{url.replace("/openai/", "/compatible/")}"
owned = true
[models.big]
provider = "far"
model = "big"
price = {{ input = 1.0, cached = 0.1, output = 10.0 }}
[models.small]
provider = "far"
model = "small"
price = {{ input = 0.1, output = 1.0 }}
[models.box-70b]
provider = "box"
model = "box-70b"
[models.own]
local = "fake:1b"
[labels.private]
stay = "owned"
"""
