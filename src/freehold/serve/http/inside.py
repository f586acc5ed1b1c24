"""A model in another engine, for as long as this process wants it: a server in a thread, on a socket of its own.

    with freehold.deploy("./Qwen3-8B", engine="vllm", python="env/bin/python") as llm:
        for chunk in llm.stream([Message("user", "Hi")]): ...
        llm.upgrade(replicas=2)

Answers come through the server's own code, so fields, sampling and receipts are those of `freehold serve`; only this
user opens the Unix socket, and there is no port. Knows a thread and its event loop; what is deployed is a plan.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from freehold.base.config import Settings, check_names, load_settings
from freehold.base.errors import EngineClosed, UsageError
from freehold.base.serving import MAX_TEXTS, EmbedJob, LoadedInfo, ModelInfo, Vectors
from freehold.base.types import Embeddings
from freehold.outgrow.contract import DeploymentRow, DeployPlan
from freehold.outgrow.options import OPTIONS, DeployOptions
from freehold.outgrow.planning.options import planned
from freehold.outgrow.replicas.models import DeployedModels
from freehold.run.store import Store
from freehold.serve.remote import Api
from freehold.serve.remote.openai import HttpModel
from freehold.serve.worker.models import EngineModels

if TYPE_CHECKING:
    from freehold.serve.http.core.call import ServerHandle

T = TypeVar("T")
N = TypeVar("N", DeploymentRow, LoadedInfo)
LOOKED_S = 0.1
END_S = 30.0  # for its engines to end
DRAIN_S = 30.0  # for answers, before a stop ends their engine


def deploy(model: str, *, settings: Settings | None = None, **options: Any) -> DeployedLLM:
    """Start another engine with `model`, and return it as a ChatModel with status, logs, restart, upgrade and stop.

    The engine stops when the object is closed. `options`: those of plan_deployment, except `on` for other hardware, and
    `fallback`: an installed model that answers chats and texts while no replica is ready, after the first successful
    start. Raises UsageError if there is no valid plan, and EngineLost, with the cause, if the engine does not start. To
    serve a deployment to clients, use `freehold deploy`.
    """
    check_names(options, OPTIONS)
    settings, deploy_options = settings or load_settings(), DeployOptions(model, **options)
    return DeployedLLM(settings, deploy_options, planned(settings, deploy_options, start=True))


class DeployedLLM(HttpModel):
    """A model in another engine, which stops when this object is closed: a ChatModel with the verbs of `freehold
    deploy`.

    After `stop` or `close`, its methods raise EngineClosed.
    """

    def __init__(
        self,
        settings: Settings,
        deploy_options: DeployOptions,
        plan: DeployPlan,
        show: Callable[[DeploymentRow], None] | None = None,
    ) -> None:
        """Start the engine; `show` gets its state while it starts. Raises EngineLost."""
        started = time.perf_counter()
        self._settings, self._options = settings, deploy_options
        self._inside = InsideServer(Store(settings))
        try:
            info = self._inside.deploy(plan, show or (lambda row: None), deploy_options.fallback)
        except BaseException:
            self._inside.close()
            raise
        info = replace(info, load_s=time.perf_counter() - started)
        super().__init__(self._inside.api(), plan.model.name, info)

    def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> Embeddings:
        """Return a vector of unit length for each text, from an embedding model.

        `dimensions`: keep this many dimensions of each vector, normalised again, for models trained for it. Raises
        UsageError for too many texts, and UpstreamFailed if the engine rejects a text: it is empty, longer than the
        context, or the model is not an embedding model.
        """
        import numpy as np

        listed = (texts,) if isinstance(texts, str) else tuple(texts)
        if not 1 <= len(listed) <= MAX_TEXTS:
            raise UsageError(f"there are {len(listed):,} texts; expected 1 to {MAX_TEXTS:,}")
        vectors = self._inside.wait(
            partial(_embedded, name=self.name, job=EmbedJob(listed, dimensions=dimensions))
        )
        rows = np.frombuffer(vectors.data, "<f4").reshape(-1, vectors.width)
        return Embeddings(rows, vectors.tokens, vectors.cut)

    def status(self) -> DeploymentRow:
        """Return the plan, the request counts, and for each replica the state, process, memory (bytes) and why it last
        ended."""
        return self._inside.row(self.name)

    def logs(self, replica: int = 0) -> Sequence[str]:
        """Return the newest lines of a replica's log, which contains no prompts and no answers."""
        return self._inside.models.log(self.name, replica)

    def restart(self, *, drain_first: bool = False) -> DeploymentRow:
        """Replace the replicas one at a time without cutting off answers; return when all are replaced.

        `drain_first`: stop each engine before the new one starts, as if the device could not hold both. Raises
        EngineLost if a new engine does not become ready; the old ones then stay, or are started again.
        """
        self._inside.wait(lambda models: models.restart(self.name, drain_first=drain_first))
        return self._rolled()

    def upgrade(self, *, drain_first: bool = False, **options: Any) -> DeploymentRow:
        """Move to another plan, replica by replica: other flags, another environment, more or fewer replicas.

        `options`: those of plan_deployment; options that you leave out keep their values. Raises UsageError if there is
        no valid plan, and EngineLost as `restart` does.
        """
        check_names(options, OPTIONS)
        before = self.status().plan.nodes
        deploy_options = replace(self._options, **{"name": self.name, **options})
        plan = planned(self._settings, deploy_options, start=True, here=before if before.here else None)
        rolled = {"fallback": deploy_options.fallback, "drain_first": drain_first}
        self._inside.wait(lambda models: models.upgrade(self.name, plan, **rolled))
        self._options = deploy_options
        return self._rolled()

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Wait up to `drain_s` seconds for running answers, then stop the engine; `close` stops it at once."""
        self._inside.wait(lambda models: models.stop(self.name, drain_s))
        self.close()

    def close(self) -> None:
        """Stop the internal server and the engine."""
        super().close()
        self._inside.close()

    def _rolled(self) -> DeploymentRow:
        """Return the row after a roll, whose engines may offer another context."""
        self._info = replace(self._inside.info(self.name), load_s=self.info.load_s)
        return self.status()


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
        name = plan.model.name
        self.wait(lambda models: models.add(plan, fallback=fallback))
        while not (row := self.row(name)).answers(first=True):
            show(row)
            time.sleep(LOOKED_S)
        return self.info(name)

    @property
    def models(self) -> DeployedModels:
        """What it serves. Raises EngineClosed after its end."""
        if self._models is None or not self._thread.is_alive():
            raise EngineClosed("the deployment was stopped", "deploy it again")
        return self._models

    def wait(self, work: Callable[[DeployedModels], Coroutine[Any, Any, T]]) -> T:
        """Do something with its models in its own thread, and wait for its end. Raises what it raises."""
        return asyncio.run_coroutine_threadsafe(work(self.models), self._loop).result()

    def row(self, name: str) -> DeploymentRow:
        """Return a deployment. Raises EngineClosed for one that is being stopped."""
        return self.wait(lambda models: _row(models, name))

    def info(self, name: str) -> ModelInfo:
        """Return what a deployment answers with: its context, the engine. Raises EngineClosed as `row` does."""
        return self.wait(lambda models: _info(models, name))

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

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except BaseException as e:
            self._failed = e
        finally:
            self._up.set()

    async def _serve(self) -> None:
        from freehold.serve.http.core.sockets import bind_unix
        from freehold.serve.http.serve import Doors, ServerSettings

        models = self._models = DeployedModels(EngineModels(self._store), self._folder)
        doors = self._doors = Doors(models, ServerSettings(drain_s=0.0))
        await doors.open([], bind_unix(self._socket), self._up.set)


async def _row(models: DeployedModels, name: str) -> DeploymentRow:
    return _named(models.rows(), name)


async def _info(models: DeployedModels, name: str) -> ModelInfo:
    return _named(models.loaded(), name).info


def _named(listed: Sequence[N], name: str) -> N:
    for each in listed:
        if each.name == name:
            return each
    raise EngineClosed("the deployment is being stopped", "deploy it again when it has ended")


async def _embedded(models: DeployedModels, name: str, job: EmbedJob) -> Vectors:
    return await (await models.use(name)).embed(job)
