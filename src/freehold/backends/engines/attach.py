"""Engines that were started by other means: known by their answers, asked as ours are, neither started nor ended.

    plan = attached_plan("http://127.0.0.1:8000", "qwen3")     # asks what it is; raises UsageError, EngineLost
    engine = await AttachDriver(driver).launch(plan, folder)   # at once; ready is one token, as ever
    death = await engine.ended                                 # it no longer answers; the next launch waits for it

Its address is on this machine, or https. Plain http to another machine shows prompts, answers and the key to everyone
on the way, so it takes the explicit word that the way is private already (a tunnel, a cable): `cleartext`.
Path: cli -> attached_plan -> DeployPlan.attached; drivers.driver_of -> AttachDriver.launch -> AttachedEngine
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from freehold.backends.contract import (
    DeployPlan,
    EngineDeath,
    EngineDriver,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    PlanRequest,
    SecretRef,
    StartProgress,
)
from freehold.backends.engines.client import EngineClient
from freehold.errors import UsageError

HERE = ("127.0.0.1", "localhost", "::1")
LOOK_S = 2.0  # between two looks at an engine that answers
LOST_S = 10.0  # without an answer: it counts as dead
KEY = "ATTACHED_KEY"
# A route that says that the engine lives; SGLang's own health runs a token for each call.
_LIVES: Mapping[str, str] = {
    "vllm": "/health",
    "llamacpp": "/health",
    "trtllm": "/health",
    "ollama": "/api/version",
}


@dataclass(frozen=True, slots=True)
class AttachTarget:
    """Where an attached engine answers."""

    url: str  # without a path: http://127.0.0.1:8000, or http://engine with a socket
    socket: Path | None = None
    key_env: str = ""  # the variable of our environment that has its key

    @property
    def shown(self) -> str:
        """As the user wrote it."""
        return f"unix:{self.socket}" if self.socket is not None else self.url

    @property
    def beyond(self) -> bool:
        """Whether it is not this machine."""
        return self.socket is None and urlsplit(self.url).hostname not in HERE

    @property
    def key(self) -> str:
        """The key's value; "" for none. Raises UsageError where the variable is not set."""
        if not self.key_env:
            return ""
        value = os.environ.get(self.key_env, "")
        if not value:
            raise UsageError(
                f"{self.key_env}, which --attach-key-env names, is not set in this process",
                f"export {self.key_env}=... before freehold serve or freehold deploy, whichever runs the server",
            )
        return value

    def client(self) -> EngineClient:
        """Return a way to ask its routes."""
        return EngineClient(self.url, socket=self.socket, key=self.key)


def target(text: str, *, key_env: str = "", cleartext: bool = False) -> AttachTarget:
    """Read an address. Raises UsageError: not an address, or plain http beyond this machine without the word for it."""
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:").removeprefix("//"))
        if not path.is_absolute():
            raise UsageError(f"{text!r} names no socket", "write unix:/path/to/engine.sock")
        return AttachTarget("http://engine", path, key_env)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise UsageError(f"{text!r} has no valid port or host", "write http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{text!r} is not an engine's address", "write http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query:
        raise UsageError(
            "an engine's address has no password and no query",
            "name the key's variable: --attach-key-env NAME",
        )
    if parts.path.rstrip("/") not in ("", "/v1"):
        raise UsageError(f"{text!r}: only an address without a path is known", "leave the path out")
    if parts.scheme == "http" and parts.hostname not in HERE and not cleartext:
        raise UsageError(
            f"{parts.hostname} is not this machine, and http shows prompts, answers and keys on the way",
            "use https, a tunnel to a local port, or --attach-cleartext where the way is private",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return AttachTarget(f"{parts.scheme}://{host}" + (f":{port}" if port else ""), None, key_env)


class AttachDriver:
    """Implements contract.EngineDriver for an attached engine; all but its life is the engine's own."""

    drains = False
    busy_waits = True

    def __init__(self, driver: EngineDriver) -> None:
        self._driver = driver
        self.name: EngineName = driver.name
        self.title, self.package, self.least = driver.title, driver.package, driver.least
        self.wire = driver.wire
        # What trtllm-serve's metrics tell, they tell once: reading them would take them from their owner.
        self.metrics_path = "" if driver.name == "trtllm" else driver.metrics_path

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Refuse: nothing is planned for what runs already."""
        raise UsageError(f"an attached {self.title} is not planned", "leave its flags to who runs it")

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Return it at once, whether it answers by now or not."""
        engine = AttachedEngine(plan, target_of(plan), self.title)
        engine.watch()
        return engine

    def phase(self, line: str) -> str:
        """Return "": its log is not ours."""
        return ""

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Read its metrics."""
        return self._driver.numbers(body, before)


def target_of(plan: DeployPlan) -> AttachTarget:
    """Return where a plan's engine answers; what was allowed when it was planned is allowed still."""
    source = next((s.source for s in plan.secrets if s.variable == KEY), "")
    return target(plan.attached, key_env=source.removeprefix("env:"), cleartext=True)


def key_of(target: AttachTarget) -> tuple[SecretRef, ...]:
    """Return the reference of an engine's key, as a plan has it."""
    return (SecretRef(KEY, f"env:{target.key_env}"),) if target.key_env else ()


class AttachedEngine:
    """Implements contract.LaunchedEngine. It dies once it has answered and no longer does, for LOST_S."""

    pid = 0

    def __init__(self, plan: DeployPlan, at: AttachTarget, title: str) -> None:
        """Made inside a running event loop. Raises UsageError where the key's variable is not set."""
        self.plan, self.title = plan, title
        self.ended: asyncio.Future[EngineDeath | None] = asyncio.get_running_loop().create_future()
        self.log: deque[str] = deque(maxlen=100)
        self._at, self._key = at, at.key
        self._answered = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"{self._at.url}/v1"

    @property
    def socket(self) -> Path | None:
        return self._at.socket

    @property
    def key(self) -> str:
        return self._key

    def progress(self) -> StartProgress:
        """Return whether it answers. Its start is not ours, so it counts as progress."""
        phase = "up" if self._answered else f"waiting for {self._at.shown} to answer"
        return StartProgress(phase, cpu_s=0.0, memory_bytes=0, lines=len(self.log), since_s=0.0)

    async def stop(self, drain_s: float) -> None:
        """Let go of it. It runs on: nothing of its life is ours."""
        self._end(None)

    def kill(self, why: str) -> None:
        """Let go of it; `ended` says why."""
        self._end(EngineDeath(f"{self.title} at {self._at.shown} was given up: {why}"))

    def watch(self) -> None:
        """Look at it from now on."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        path = _LIVES.get(self.plan.engine, "/v1/models")
        heard = time.monotonic()
        async with self._at.client() as ask:
            while not self.ended.done():
                response = await ask.get(path)
                now = time.monotonic()
                if response is not None and response.status < 500:
                    heard = now
                    if not self._answered:
                        self._answered = True
                        self.log.append(f"{self.title} at {self._at.shown} answers")
                elif self._answered and now - heard >= LOST_S:
                    what = "does not answer" if response is None else f"says {response.status} to {path}"
                    self._end(EngineDeath(f"{self.title} at {self._at.shown} {what} for {now - heard:.0f} s"))
                await asyncio.wait([self.ended], timeout=LOOK_S)

    def _end(self, death: EngineDeath | None) -> None:
        if not self.ended.done():
            if death is not None:
                self.log.append(death.sentence)
            self.ended.set_result(death)
