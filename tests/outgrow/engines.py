"""A driver of stand-ins for the tests of replicas: processes started and watched as simply as can be."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Chunk, Message
from freehold.outgrow import drivers
from freehold.outgrow.contract import (
    DeployPlan,
    EngineDeath,
    EngineDriver,
    EngineName,
    EngineNumbers,
    Listens,
    PlanRequest,
    StartProgress,
)
from freehold.outgrow.engines.wire import EngineWire, TokenRoutes
from freehold.outgrow.replicas.deployment import ReplicaSet
from freehold.outgrow.replicas.replica import Replica, ReplicaLimits
from freehold.route.providers.hop import Hop
from tests.outgrow import plans, standin
from tests.outgrow.standin import text

P = ParamSpec("P")
KEY = "standin-0123456789abcdef"
# Times for tests: nothing here waits as long as an engine of the world does.
QUICK = ReplicaLimits(first_wait_s=0.05, most_wait_s=0.2, probe_s=0.02, watch_s=0.05, hung_s=60.0)
HANGING = replace(QUICK, quiet_s=0.5, hung_s=2.0)  # a machine that is short of everything pauses for a second


class StandInWire(EngineWire):
    gives_ids = takes_ids = True
    tokens = TokenRoutes()


class RunningStandIn:
    """Implements contract.LaunchedEngine."""

    def __init__(self, plan: DeployPlan, process: asyncio.subprocess.Process) -> None:
        self.plan, self._process = plan, process
        self.ended: asyncio.Future[EngineDeath | None] = asyncio.get_running_loop().create_future()
        self.log: deque[str] = deque(maxlen=100)
        self.key, self.url, self.socket = KEY, "http://engine/v1", plan.listens.socket
        self.cpu_s = lambda: 1.0  # seconds of processor, as it tells them
        self._why = ""
        self._asked = False
        self._watching = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _watch(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.log.append(line.decode().rstrip())
        status = await self._process.wait()
        last = self.log[-1] if self.log else ""
        self.ended.set_result(
            None if self._asked else EngineDeath(self._why or f"it ended ({status}): {last}", status=status)
        )

    def progress(self) -> StartProgress:
        return StartProgress("loading weights", self.cpu_s(), 1 << 20, len(self.log), 0.0)

    async def stop(self, drain_s: float) -> None:
        self._asked = True
        self.signal(signal.SIGKILL)
        await asyncio.shield(self.ended)

    def kill(self, why: str) -> None:
        self._why = why
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and the loop has not heard of it
                os.kill(self._process.pid, number)


class StandInDriver:
    """Implements contract.EngineDriver. `options` of the stand-in may be changed between two starts."""

    name: EngineName = "vllm"
    title = "vLLM"
    package = "vllm"
    least = "0.32.0"
    wire = StandInWire()
    metrics_path = "/metrics"
    drains = True
    busy_waits = True

    def __init__(self, **options: object) -> None:
        self.options_now = options
        self.engines: list[RunningStandIn] = []
        self.refuses = ""

    def __call__(self, plan: DeployPlan) -> StandInDriver:
        return self

    def plan(self, request: PlanRequest) -> DeployPlan:
        raise NotImplementedError

    async def launch(self, plan: DeployPlan, folder: Path) -> RunningStandIn:
        if self.refuses:
            raise UsageError(self.refuses)
        words = standin.command("vllm", **self.options_now)
        process = await asyncio.create_subprocess_exec(
            *words,
            *(word for flag in plan.flags for word in flag.words()),
            "--uds",
            str(plan.listens.socket),
            "--served-model-name",
            plan.model.name,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "VLLM_API_KEY": KEY},
        )
        engine = RunningStandIn(plan, process)
        self.engines.append(engine)
        return engine

    def phase(self, line: str) -> str:
        return ""

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        return drivers.driver("vllm").numbers(body, before)

    def engine_of(self, pid: int) -> RunningStandIn:
        """Return the engine with a process number."""
        return next(engine for engine in self.engines if engine.pid == pid)


def plan(folder: Path, replicas: int = 2) -> DeployPlan:
    """Return a plan of stand-ins."""
    found = plans.plan()
    return replace(
        found,
        flags=(),
        secrets=(),
        replicas=replicas,
        context=8192,
        model=replace(found.model, name="m"),
        listens=Listens(folder / "planned.sock"),
    )


@asynccontextmanager
async def deployed(
    folder: Path, driver: StandInDriver, replicas: int = 2, limits: ReplicaLimits = QUICK
) -> AsyncIterator[ReplicaSet]:
    """Run replicas, all of them ready."""
    hop = Hop()
    found = ReplicaSet(plan(folder, replicas), driver, folder, hop, limits=limits)
    try:
        found.run()
        await until(lambda: all(replica.ready for replica in found))
        yield found
    finally:
        await found.stop(0.0)
        await hop.close()


@asynccontextmanager
async def operated(
    plan: DeployPlan, driver: EngineDriver, folder: Path, limits: ReplicaLimits = QUICK
) -> AsyncIterator[Replica]:
    """Run one replica, whatever becomes of it."""
    hop = Hop()
    found = Replica(0, plan, driver, folder, hop, limits=limits)
    try:
        found.run()
        yield found
    finally:
        await found.stop(0.0)
        await hop.close()


async def until(true: Callable[[], bool], most_s: float = 20.0) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(most_s):
        while not true():
            await asyncio.sleep(0.01)


def chat(said: str, **more: Any) -> Job:
    """Return a greedy chat."""
    given = {"max_tokens": 12, "sampling": {"temperature": 0.0}} | more
    return Job(messages=(Message("user", said),), **given)


def expected(said: str, tokens: int = 12) -> str:
    """Return what every stand-in answers to a chat."""
    return text.answer(text.rendered([{"role": "user", "content": said}], open_end=False), tokens)


async def read(stream: Any) -> list[Chunk]:
    """Return all chunks of a stream."""
    try:
        return [chunk async for _, chunk in stream]
    finally:
        await stream.aclose()


def joined(chunks: list[Chunk]) -> str:
    """Return the text of chunks."""
    return "".join(chunk.text for chunk in chunks)


def synchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test function of a coroutine function, in a loop of its own; fixtures and parameters stay."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
