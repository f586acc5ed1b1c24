"""A model in another engine, for as long as this process wants it: a server in a thread, on a socket of its own.

    with deploy("./Qwen3-8B", engine="vllm", python="env/bin/python") as llm:
        for chunk in llm.stream([Message("user", "Hi")]): ...

Answers come through the server's own code, so fields, sampling and receipts are those of `freehold serve`; only this
user opens the Unix socket, and there is no port. Knows a thread and its event loop; what is deployed is a plan.
Path: deploy, cli/chat/engines.py -> InsideModel -> InsideServer.deploy -> serve.Doors, DeployedModels -> Api
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.backends.contract import DeployPlan
from freehold.backends.planning.asked import DeployOptions, planned
from freehold.backends.replicas.models import DeployedModels
from freehold.backends.rows import DeploymentRow
from freehold.config import Settings, load_settings
from freehold.remote.http import Api
from freehold.remote.openai import HttpModel
from freehold.serving import ModelInfo
from freehold.store import Store
from freehold.worker.models import EngineModels

if TYPE_CHECKING:
    from freehold.server.core.call import ServerHandle

LOOKED_S = 0.1
END_S = 30.0  # for its engines to end


def deploy(model: str, *, settings: Settings | None = None, **options: Any) -> InsideModel:
    """Start another engine with `model`, and return it as a ChatModel; closing that ends the engine.

    `options`: those of plan_deployment. Raises UsageError for what cannot be planned, and EngineLost with the cause for
    an engine that does not come up. A deployment that clients of a server see is `freehold deploy`.
    """
    settings, asked = settings or load_settings(), DeployOptions(model, **options)
    return InsideModel(Store(settings), planned(settings, asked, start=True), fallback=asked.fallback)


class InsideModel(HttpModel):
    """A model in another engine, which ends with it."""

    def __init__(
        self,
        store: Store,
        plan: DeployPlan,
        show: Callable[[DeploymentRow], None] = lambda row: None,
        *,
        fallback: str = "",
    ) -> None:
        """Start the engine; `show` gets its state while it starts. Raises EngineLost.

        `fallback`: a stored model that answers while the engine does not, once it did.
        """
        started = time.perf_counter()
        self._inside = InsideServer(store)
        try:
            info = self._inside.deploy(plan, show, fallback)
        except BaseException:
            self._inside.close()
            raise
        info = replace(info, load_s=time.perf_counter() - started)
        super().__init__(self._inside.api(), plan.model.name, info)

    def close(self) -> None:
        """End the server inside, and the engine."""
        super().close()
        self._inside.close()


class InsideServer:
    """The server, from its making to `close`."""

    def __init__(self, store: Store) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fh-"))
        self._socket = self._folder / "s" / "server.sock"
        self._store = store
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._failed: BaseException | None = None
        self._doors: ServerHandle | None = None
        self._models: DeployedModels | None = None
        self._thread = threading.Thread(target=self._run, name="freehold-inside", daemon=True)
        self._thread.start()
        self._up.wait()
        if self._failed is not None:
            self.close()
            raise self._failed

    def deploy(self, plan: DeployPlan, show: Callable[[DeploymentRow], None], fallback: str) -> ModelInfo:
        """Start a plan and wait until it answers; `show` gets its state meanwhile. Raises EngineLost."""
        assert self._models is not None
        models, name = self._models, plan.model.name
        asyncio.run_coroutine_threadsafe(models.add(plan, fallback=fallback), self._loop).result()
        while not (row := self._row(name)).answers(first=True):
            show(row)
            time.sleep(LOOKED_S)
        return next(each.info for each in models.loaded() if each.name == name)

    def api(self) -> Api:
        """Return a connection to it."""
        return Api(socket=self._socket)

    def close(self) -> None:
        """End the server with its engines."""
        if self._doors is not None and self._thread.is_alive():
            doors = self._doors
            self._loop.call_soon_threadsafe(lambda: doors.stop(now=True))
        self._thread.join(END_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _row(self, name: str) -> DeploymentRow:
        assert self._models is not None
        return next(row for row in self._models.rows() if row.name == name)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as e:
            self._failed = e
        finally:
            self._up.set()

    async def _serve(self) -> None:
        from freehold.server.core.sockets import bind_unix
        from freehold.server.serve import Doors, ServerSettings

        models = self._models = DeployedModels(EngineModels(self._store), self._folder)
        doors = self._doors = Doors(models, ServerSettings(drain_s=0.0))
        await doors.open([], bind_unix(self._socket), self._up.set)
