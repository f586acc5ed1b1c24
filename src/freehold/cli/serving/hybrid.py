"""The gateway of a starting server: its file is read, its keys leave the environment, its parts are announced.

Knows the file and the messages; the parts are router/opening.py's. Imported only where a gateway.toml is named.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.adapt.evals.trial import ServedChat
from freehold.base.config import Settings
from freehold.base.serving import ModelManager, Origin
from freehold.route.router.opening import LiveGateway, ServedGateway, check_packages, ledger_path, open_models
from freehold.route.router.toml.table import KeptEnvironment
from freehold.run.store import Store
from freehold.serve.reports.gateway_file import AskedVariables, outside_of
from freehold.serve.worker.models import EngineModels

if TYPE_CHECKING:
    from freehold.serve.http.core.keys import Ring
    from freehold.serve.http.serve import Doors


class HybridStart:
    """A server's gateway from its start. Raises BadGateway, and UsageError for a missing package."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        path: Path,
        models: Sequence[str] = (),
        environment: KeptEnvironment | None = None,
    ) -> None:
        environment = environment or KeptEnvironment()
        self._store, self._environment = store, environment
        self._teaching: asyncio.Task[None] | None = None
        outside = outside_of(settings, environment, coming=models)
        self.live = LiveGateway(path, replace(outside, offline=settings.offline))
        check_packages(self.live.current)
        self.ledger = ledger_path(self.live.current, settings.home)
        environment.hide()  # before any child process is started
        self.live.on_change(lambda gateway: environment.hide())

    async def open(self, engines: ModelManager) -> ServedGateway:
        """Return the models of the server; called in its event loop."""
        return open_models(engines, self.live, self._store)

    def opened(self, doors: Doors) -> None:
        """Let /health tell the gateway's troubles."""
        models = doors.server.models
        if isinstance(models, ServedGateway):
            doors.server.watched.append(lambda: "; ".join(models.troubles()))
            self._teach_when_idle(doors)
            self.live.on_change(lambda gateway: self._teach_when_idle(doors))

    def _teach_when_idle(self, doors: Doors) -> None:
        """Teach the models of routes with `graduate` while the server has nothing else to do."""
        if self._teaching is not None or not any(r.graduate for r in self.live.current.routes.values()):
            return
        from freehold.adapt.idle_graduation import IdleGraduation, missing
        from freehold.route.router.graduation import TaughtNow

        if missing():
            return
        server = doors.server
        idle = IdleGraduation(
            self._store.settings.home,
            self.live.path.absolute(),
            lambda: self.live.current,
            lambda: bool(server.calls) or server.health.stopping,
            self._environment.whole,
        )
        server.parts[TaughtNow] = idle.now
        self._teaching = task = asyncio.get_running_loop().create_task(idle.run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        server.ending.append(end)

    def lines(self, keys: Ring) -> Iterator[str]:
        """Yield what the server prints of its gateway; `keys`: those of requests."""
        gateway = self.live.current
        providers = [f"{p.name} ({p.kind}{', owned' if p.owned else ''})" for p in gateway.providers.values()]
        yield f"gateway: {self.live.path}; routes: {', '.join(gateway.routes) or 'none'}"
        yield f"providers: {', '.join(providers) or 'none'}; ledger: {self.ledger}"
        if any(route.graduate for route in gateway.routes.values()):
            from freehold.adapt.idle_graduation import missing, taught_by_itself

            routes = ", ".join(taught_by_itself(gateway))
            if routes and (package := missing()):
                install = "pip install 'freehold[adapt]' brings it"
                yield f"warning: no model is taught for {routes} without {package}: {install}"
            elif routes:
                yield f"graduate: {routes}, while there are no requests"
        if unknown := [name for name in gateway.keys if keys.named(name) is None]:
            yield f"warning: {self.live.path.name} names keys that do not exist: {', '.join(unknown)}"

    def as_json(self) -> dict[str, Any]:
        """Return the same for programs."""
        gateway = self.live.current
        return {
            "file": str(self.live.path),
            "routes": [*gateway.routes],
            "providers": [*gateway.providers],
            "ledger": str(self.ledger),
        }


def missing_variables(settings: Settings, path: Path) -> list[str]:
    """Check the file as far as it can be without its keys; return the variables that a service has to be given."""
    from freehold.route.router.reading import read

    needed = AskedVariables()
    read(path, outside_of(settings, needed))
    return sorted(needed.asked)


# --- the same for a verb that asks the models of a gateway.toml -------------------------------------
# The server's own parts in an event loop of another thread, without a door. Requests are labelled, budgeted and
# booked as a client's are.

DRAIN_S = 5.0


@contextmanager
def gateway_models(
    settings: Settings,
    store: Store,
    path: Path,
    labels: tuple[str, ...],
    key: str,
    door: str = "bar",
    environment: KeptEnvironment | None = None,
) -> Iterator[Callable[[str], ServedChat]]:
    """Give a function from a name to a model of the gateway, asked with these labels as this key by this door.

    `environment`: one that a verb keeps which opens the gateway more than once, as keys leave the process's own.
    """
    start = HybridStart(settings, store, path, environment=environment)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="freehold-gateway", daemon=True)
    thread.start()

    async def opened() -> ServedGateway:
        return await start.open(EngineModels(store))

    models = asyncio.run_coroutine_threadsafe(opened(), loop).result()

    def use(name: str) -> ServedChat:
        directory = models.asked_by(Origin(key=key, labels=labels, door=door))
        return ServedChat(asyncio.run_coroutine_threadsafe(directory.use(name), loop).result(), loop)

    try:
        yield use
    finally:
        asyncio.run_coroutine_threadsafe(models.close(DRAIN_S), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
