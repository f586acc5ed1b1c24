"""A server on loopback in a thread of its own, with scripted models behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx2
import pytest

from freehold.base.config import Settings as Home
from freehold.base.serving import ModelManager
from freehold.run.store import Store
from freehold.serve.http.core.sockets import bind_tcp, bind_unix
from freehold.serve.http.serve import Doors, ServerSettings
from tests.http.fakes import FakeModels, Script

JSON = {"Content-Type": "application/json"}
TOKEN = "fh-owner-0123456789abcdefghijklmnopqrstuv"
NOWHERE = "http://127.0.0.1:9"  # a hub that never answers


@dataclass
class Running:
    """A server and how to reach it."""

    models: FakeModels
    doors: Doors
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    socket: Path
    port: int
    store: Store

    @property
    def url(self) -> str:
        return self.doors.url

    @cached_property
    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    @cached_property
    def owner(self) -> httpx2.Client:
        """Return a client that comes over the network with the owner's token."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx2.Client(base_url=self.url, timeout=60, headers=headers)

    @cached_property
    def admin(self) -> httpx2.Client:
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        return httpx2.Client(base_url="http://freehold", transport=transport, timeout=60)

    def stop(self, *, now: bool = False) -> None:
        self.loop.call_soon_threadsafe(lambda: self.doors.stop(now=now))

    def end(self) -> None:
        for name in ("client", "owner", "admin"):
            if name in self.__dict__:
                self.__dict__[name].close()
        if self.thread.is_alive():
            self.stop(now=True)
        self.thread.join(60)
        assert not self.thread.is_alive()


def start(
    folder: Path,
    script: Script | None = None,
    preload: Sequence[str] = (),
    hub: str = NOWHERE,
    offline: bool = False,
    around: Callable[[FakeModels], ModelManager] = lambda models: models,
    **settings: object,
) -> Running:
    """`around`: what the server has in the place of the scripted models, such as deployments around them."""
    models, store = FakeModels(script), Store(Home(home=folder / "home", hub_endpoint=hub, offline=offline))
    tcp, unix = bind_tcp("127.0.0.1", 0), bind_unix(folder / "serve" / "server.sock")
    port = tcp[0].getsockname()[1]
    up = threading.Event()
    made: list[tuple[Doors, asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        doors = Doors(
            around(models),
            ServerSettings(**{"drain_s": 0.5, "home": folder, "owner": TOKEN, **settings}),
            preload=preload,
            store=store,
        )  # type: ignore[arg-type]
        made.append((doors, asyncio.get_running_loop()))
        await doors.open(tcp, unix, up.set)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert up.wait(60)
    return Running(models, *made[0], thread, folder / "serve" / "server.sock", port, store)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with the usual settings for all tests that are content with it."""
    running = start(tmp_path_factory.mktemp("server"), offline=True)
    yield running
    running.end()


@pytest.fixture
def serving(tmp_path: Path, shared: Running) -> Iterator[Callable[..., Running]]:
    """Return a function from a script and settings to a running server, its models fresh."""
    running: list[Running] = []

    def make(script: Script | None = None, **settings: object) -> Running:
        if not settings:
            shared.models.play(script or Script())
            return shared
        running.append(start(tmp_path / str(len(running)), script, **settings))
        return running[-1]

    yield make
    for each in running:
        each.end()
    asyncio.run_coroutine_threadsafe(settled(shared), shared.loop).result(60)


async def settled(running: Running) -> None:
    """Wait until requests have left their lines in the log, which the next test may read; a second at most."""
    for _ in range(1000):
        if not running.doors.server.requests:
            return
        await asyncio.sleep(0.001)
