"""Asks the models of a gateway.toml from a verb: the server's own parts in an event loop of another thread, no door.

Requests are labelled, budgeted and booked as a client's are. Knows threads and loops; the parts are router's.
Path: cli/bar -> gateway_models -> router/opening.py -> ServedChat
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from freehold.cli.serving.hybrid import HybridStart
from freehold.config import Settings
from freehold.evals.trial import ServedChat
from freehold.router.opening import ServedGateway
from freehold.serving import Origin
from freehold.store import Store
from freehold.worker.models import EngineModels

DRAIN_S = 5.0


@contextmanager
def gateway_models(
    settings: Settings, store: Store, path: Path, labels: tuple[str, ...], key: str
) -> Iterator[Callable[[str], ServedChat]]:
    """Give a function from a name to a model of the gateway, asked with these labels as this key."""
    start = HybridStart(settings, store, path)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="freehold-gateway", daemon=True)
    thread.start()

    async def opened() -> ServedGateway:
        return await start.open(EngineModels(store))

    models = asyncio.run_coroutine_threadsafe(opened(), loop).result()

    def use(name: str) -> ServedChat:
        directory = models.asked_by(Origin(key=key, labels=labels, door="bar"))
        return ServedChat(asyncio.run_coroutine_threadsafe(directory.use(name), loop).result(), loop)

    try:
        yield use
    finally:
        asyncio.run_coroutine_threadsafe(models.close(DRAIN_S), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
