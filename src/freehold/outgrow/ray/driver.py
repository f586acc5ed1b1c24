"""Drives a Ray Serve app as one engine: its cluster is one process tree of ours, its ingress one Unix socket.

    plan = over(inner, ray)
    engine = await RayDriver(drivers.driver("vllm")).launch(plan, folder)

It speaks as the engine of its replicas does, with a header by which Serve keeps a prompt's beginning on one replica.
Knows no process: process.py starts the head, as it starts any engine.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from freehold.base import private
from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.outgrow.contract import (
    DeployPlan,
    EngineDriver,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    PlanRequest,
    fill,
)
from freehold.outgrow.engines.started import StartedEngine
from freehold.outgrow.ray.plan import LEAST, free_base, moved, text_for
from freehold.outgrow.replicas.affinity import prefix_key
from freehold.route.providers.contract import Outgoing, RemoteModel

if TYPE_CHECKING:
    from freehold.outgrow.engines.wire import EngineWire

SESSION = "x-session-id"  # Ray's RAY_SERVE_SESSION_ID_HEADER_KEY
# Bytes of Ray's own sockets below its folder: /session_2026-11-28_04-45-03_452626_30086/sockets/plasma_store
_SOCKET_BYTES = 64
_PHASES = (
    ("^head: starting Ray", "starting Ray"),
    ("^head: starting replicas", "starting replicas"),
    ("^head: the app is ready", "asking for a token"),
    ("^head: draining", "draining"),
)
_REPLICA = re.compile(r'\{replica="([^"]*)",?')


class RayDriver(StartedEngine):
    """Implements contract.EngineDriver, around the driver of what its replicas are."""

    phases = _PHASES
    name: EngineName = "ray"
    title = "Ray Serve"
    package = "ray[serve]"
    least = LEAST
    drains = True

    def __init__(self, inner: EngineDriver) -> None:
        self.inner = inner
        self.metrics_path = "/metrics" if inner.metrics_path else ""
        self.wire = cast("EngineWire", SessionWire(inner.wire))  # the rest is the inner wire's own

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Refuse: an app is planned around its replica's plan (plan.over)."""
        raise UsageError("Ray Serve computes nothing by itself", "--engine names what its replicas are")

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Write the app's file and start the head. Raises UsageError, EngineLost."""
        if not {"--fenced", "--address"} & {flag.name for flag in plan.flags}:
            plan = moved(plan, free_base())
        (folder / "app.py").unlink(missing_ok=True)
        with open(folder / "app.py", "w", encoding="utf-8", opener=private.opener) as file:
            file.write(text_for(plan))
        short = _short_enough(folder)
        at = {"{folder}": str(short)}
        flags = (
            replace(f, value=fill(f.value or "", at)) if f.name == "--temp-dir" else f for f in plan.flags
        )
        try:
            engine = await super().launch(replace(plan, flags=tuple(flags)), folder)
        except BaseException:
            _removed(short, folder)
            raise
        engine.ended.add_done_callback(lambda _: _removed(short, folder))
        return engine

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Add up what all replicas tell; their series have a label `ray_replica`. `before` is not needed."""
        numbers = EngineNumbers()
        for replica, text in _by_replica(body.decode(errors="replace")).items():
            numbers = _sum(numbers, self.inner.numbers(text.encode()), replica)
        return numbers


class SessionWire:
    """An engine's wire whose requests name a session: the beginning of their prompt."""

    def __init__(self, wire: EngineWire) -> None:
        self._wire = wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        """Translate a job. Prompts too short for a cache have no session, and go to any replica."""
        sent = self._wire.request(model, job, stream=stream)
        key = prefix_key(job)
        if key is None:
            return sent
        return replace(sent, headers={**sent.headers, SESSION: f"{key:016x}"})


def _short_enough(folder: Path) -> Path:
    """Return where Ray's own folder is made: elsewhere where its sockets' paths would be too long in `folder`."""
    from freehold.base.platforms import SOCKET_PATH_BYTES

    if len(str(folder)) + len("/ray") + _SOCKET_BYTES <= SOCKET_PATH_BYTES:
        return folder
    return Path(tempfile.mkdtemp(prefix="fhr-"))


def _removed(short: Path, folder: Path) -> None:
    if short != folder:
        shutil.rmtree(short, ignore_errors=True)


def _by_replica(text: str) -> dict[str, str]:
    """Return each replica's lines as its engine gave them."""
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _REPLICA.search(line):
            plain = line[: match.start()] + "{" + line[match.end() :]
            lines.setdefault(match[1], []).append(plain.replace("{}", "", 1))
    return {replica: "\n".join([*each, ""]) for replica, each in lines.items()}


def _sum(a: EngineNumbers, b: EngineNumbers, replica: str) -> EngineNumbers:
    cached = [n for n in (a.cached_tokens, b.cached_tokens) if n is not None]
    labelled = {}
    for series, n in b.series.items():
        name, _, labels = series.partition("{")
        labelled[f'{name}{{ray_replica="{replica}"' + (f",{labels}" if labels else "}")] = n
    usages = [usage for usage in (a.cache_usage, b.cache_usage) if usage is not None]
    return EngineNumbers(
        running=a.running + b.running,
        waiting=a.waiting + b.waiting,
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        generated_tokens=a.generated_tokens + b.generated_tokens,
        cached_tokens=sum(cached) if cached else None,
        cache_usage=max(usages, default=None),  # the fullest decides
        series={**a.series, **labelled},
    )
