"""Routes of the owner for engines beyond ours: what is deployed, and adding, rolling, stopping and reading of it.

A plan names the program to be started, so adding and upgrading take the owner's socket or token; an admin's key lists,
restarts and stops. What is added is kept as a file and forgotten when it is stopped. Knows no engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.routing import Route

from freehold.base.errors import AccessDenied, FreeholdError, ModelNotFound, UsageError
from freehold.outgrow import kept
from freehold.outgrow.contract import DeploymentRow, Deployments, DeployPlan
from freehold.outgrow.options import DeployOptions
from freehold.serve.http.core.call import HttpCall, Server, route
from freehold.serve.http.core.fields import Name
from freehold.serve.http.core.problems import without_paths

_T = TypeVar("_T", DeployPlan, DeployOptions)
DRAIN_S = 30.0
MOST_DRAIN_S = 3600.0
WATCHED_S = 0.25  # how often a start is looked at, for /ready


class DeployRequest(Struct, kw_only=True):
    """A plan to be started, with every field of backends.contract.DeployPlan."""

    plan: dict[str, Any]
    asked: dict[str, Any]  # the options it was planned from


class RestartRequest(Struct, kw_only=True):
    """Which deployment to roll. `drain_first`: each engine ends before the new one starts."""

    name: Name
    drain_first: bool = False


class UpgradeRequest(Struct, kw_only=True):
    """The plan that replaces a deployment's."""

    name: Name
    plan: dict[str, Any]
    asked: dict[str, Any]
    drain_first: bool = False


class StopDeploymentRequest(Struct, kw_only=True):
    """Which deployment to end, after its answers for at most `drain_s`."""

    name: Name
    drain_s: Annotated[float, Meta(ge=0, le=MOST_DRAIN_S)] = DRAIN_S


class LogRequest(Struct, kw_only=True):
    """Whose newest lines of log."""

    name: Name
    replica: Annotated[int, Meta(ge=0, le=10_000)] = 0


class DeploymentDesk:
    """The deployments of a server, with their files. `Server.parts` has it."""

    def __init__(self, server: Server, deployments: Deployments, home: Path) -> None:
        self.deployments = deployments
        self._server, self._home = server, home
        self._tasks: set[asyncio.Task[Any]] = set()  # a loop forgets tasks that nothing names
        # Of those that are awaited: /ready tells why until the server ends or answers without them.
        self._lost: set[str] = set()

    async def add(
        self, plan: DeployPlan, options: DeployOptions, *, awaited: bool = False, keep: bool = True
    ) -> DeploymentRow:
        """Begin to start a plan. `awaited`: the server was started for it, so that /ready waits; `keep`: as a file."""
        row = await self.deployments.add(plan, fallback=options.fallback)
        if keep:
            self.keep(plan, options)
        if awaited:
            self._server.health.preload[row.name] = "starting"
            self._hold(self._until_ready(row.name))
        return row

    def awaits(self, names: Sequence[str]) -> None:
        """Let /ready wait for deployments that are about to be added."""
        self._server.health.preload |= dict.fromkeys(names, "starting")

    def lost(self, name: str, why: str) -> None:
        """Let /ready tell that the start of an awaited deployment failed, though its engine is gone by now."""
        self._lost.add(name)
        self._server.health.preload[name] = without_paths(why)

    def forget_lost(self) -> None:
        """Let /ready forget the lost ones: the server answers without them."""
        for name in self._lost:
            self._server.health.preload.pop(name, None)
        self._lost.clear()

    def keep(self, plan: DeployPlan, options: DeployOptions) -> None:
        """Write a deployment's file."""
        kept.keep(self._home, kept.KeptDeployment(plan.model.name, plan, options))

    async def upgrade(
        self, name: str, plan: DeployPlan, options: DeployOptions, *, drain_first: bool = False
    ) -> None:
        """Roll to another plan; it is kept once every replica follows it."""
        work = self.deployments.upgrade(name, plan, fallback=options.fallback, drain_first=drain_first)
        await self._finished(work)
        self.keep(plan, options)

    async def restart(self, name: str, *, drain_first: bool = False) -> None:
        """Roll every replica; continues where the client that asked for it leaves."""
        await self._finished(self.deployments.restart(name, drain_first=drain_first))

    async def stop(self, name: str, drain_s: float) -> None:
        """End a deployment and forget it; a kept one that does not run is forgotten alone."""
        try:
            await self._finished(self.deployments.stop(name, drain_s))
        except ModelNotFound:
            if not kept.forget(self._home, name):
                raise
        kept.forget(self._home, name)
        self._server.health.preload.pop(name, None)

    def row(self, name: str) -> DeploymentRow:
        """Return one row. Raises ModelNotFound."""
        rows = self.deployments.rows()
        deployment = next((row for row in rows if row.name == name), None)
        if deployment is None:
            names = ", ".join(row.name for row in rows) or "none"
            raise ModelNotFound(f"there is no deployment {name[:200]!r}", f"deployed: {names}")
        return deployment

    async def _finished(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for `work`, which is not cancelled with its client: half a roll would leave two versions."""
        await asyncio.shield(self._hold(work))

    def _hold(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._released)
        return task

    def _released(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller that waits raises it; without one it is only noted as seen

    async def _until_ready(self, name: str) -> None:
        """Tell /ready how the start of a deployment is going, until it answers, fails or is stopped."""
        preload = self._server.health.preload
        while name in preload:
            try:
                row = self.row(name)
            except FreeholdError:
                break
            if row.ready:
                break
            failed = next((r.said for r in row.replicas if r.state == "failed"), "")
            preload[name] = without_paths(failed) if failed else _phase(row)
            await asyncio.sleep(WATCHED_S)
        if name not in self._lost:
            preload.pop(name, None)


def _phase(row: DeploymentRow) -> str:
    return next((r.phase for r in row.replicas if r.phase), "") or "starting"


def deployment_routes() -> list[Route]:
    """Return the routes."""
    at = "/admin/deployments"
    return [
        route("GET", at, deployments, audience="admin"),
        route("POST", at, deploy, DeployRequest, audience="admin"),
        route("POST", f"{at}/restart", restart, RestartRequest, audience="admin"),
        route("POST", f"{at}/upgrade", upgrade, UpgradeRequest, audience="admin"),
        route("POST", f"{at}/stop", stop, StopDeploymentRequest, audience="admin"),
        route("POST", f"{at}/log", log, LogRequest, audience="admin"),
    ]


async def deployments(call: HttpCall) -> None:
    """List deployments with their replicas: state, process, restarts, and why a replica last ended."""
    desk = call.server.part(DeploymentDesk)
    rows = desk.deployments.rows() if desk is not None else ()
    await call.answer({"deployments": [kept.as_json(row) for row in rows]})


async def deploy(call: HttpCall) -> None:
    """Start the engines of a plan under the model's name; only for the owner. Returns before they are ready."""
    request, _ = await call.struct(DeployRequest)
    desk = _desk_of_owner(call)
    await call.answer(kept.as_json(await desk.add(*_planned(request))))


async def restart(call: HttpCall) -> None:
    """Replace the replicas one at a time without cutting off answers; returns when all are replaced."""
    request, _ = await call.struct(RestartRequest)
    desk = _desk(call)
    await call.while_here(desk.restart(request.name, drain_first=request.drain_first))
    await call.answer(kept.as_json(desk.row(request.name)))


async def upgrade(call: HttpCall) -> None:
    """Do the same with another plan: other flags, another version, more or fewer replicas. Only for the owner."""
    request, _ = await call.struct(UpgradeRequest)
    desk = _desk_of_owner(call)
    work = desk.upgrade(request.name, *_planned(request), drain_first=request.drain_first)
    await call.while_here(work)
    await call.answer(kept.as_json(desk.row(request.name)))


async def stop(call: HttpCall) -> None:
    """Stop a deployment's engines after their answers; new requests to its name fail at once."""
    request, _ = await call.struct(StopDeploymentRequest)
    await call.while_here(_desk(call).stop(request.name, request.drain_s))
    await call.answer({})


async def log(call: HttpCall) -> None:
    """Return the newest lines of a replica's log, which contains no prompts."""
    request, _ = await call.struct(LogRequest)
    desk = _desk(call)
    desk.row(request.name)
    await call.answer({"lines": list(desk.deployments.log(request.name, request.replica))})


def _desk(call: HttpCall) -> DeploymentDesk:
    return call.part(DeploymentDesk, 404, "this server deploys no engines", "no_deployments")


def _desk_of_owner(call: HttpCall) -> DeploymentDesk:
    if not (call.owner or call.server.guard.trusted):
        raise AccessDenied(
            "a plan names a program to start: only the owner's socket or token may send one",
            "run freehold deploy on the server's machine",
        )
    return _desk(call)


def _planned(request: DeployRequest | UpgradeRequest) -> tuple[DeployPlan, DeployOptions]:
    """Return a request's plan, and the options that it was made from. Raises UsageError."""
    return _typed(request.plan, DeployPlan, "plan"), _typed(request.asked, DeployOptions, "asked")


def _typed(plain: dict[str, Any], kind: type[_T], field: str) -> _T:
    try:
        return kept.of_json(plain, kind)
    except msgspec.ValidationError as e:
        raise UsageError(f"{field}: {e}", "freehold deploy sends one", field=field) from None
