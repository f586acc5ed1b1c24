"""The gateway of a starting server: its file is read, its keys leave the environment, its parts are announced.

Knows the file and the messages; the parts are router/opening.py's. Imported only where a gateway.toml is named.
Path: cli/serve.py -> HybridStart.open -> router/opening.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.config import Settings
from freehold.reports.gateway_file import AskedVariables, outside_of
from freehold.router.opening import LiveGateway, ServedGateway, check_packages, ledger_path, open_models
from freehold.router.toml.outside import KeptEnvironment
from freehold.serving import ModelManager
from freehold.store import Store

if TYPE_CHECKING:
    from freehold.server.core.keys import Ring
    from freehold.server.serve import Doors


class HybridStart:
    """A server's gateway from its start. Raises BadGateway, and UsageError for a missing package."""

    def __init__(self, settings: Settings, store: Store, path: Path, models: Sequence[str] = ()) -> None:
        environment = KeptEnvironment()
        self._store = store
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

    def lines(self, keys: Ring) -> Iterator[str]:
        """Yield what the server prints of its gateway; `keys`: those of requests."""
        gateway = self.live.current
        providers = [f"{p.name} ({p.kind}{', owned' if p.owned else ''})" for p in gateway.providers.values()]
        yield f"gateway: {self.live.path}; routes: {', '.join(gateway.routes) or 'none'}"
        yield f"providers: {', '.join(providers) or 'none'}; ledger: {self.ledger}"
        if unknown := [name for name in gateway.keys if keys.named(name) is None]:
            yield f"warning: {self.live.path.name} speaks of keys that do not exist: {', '.join(unknown)}"

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
    from freehold.router.reading import read

    needed = AskedVariables()
    read(path, outside_of(settings, needed))
    return sorted(needed.asked)
