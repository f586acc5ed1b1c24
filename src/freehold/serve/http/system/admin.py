"""Routes of the owner (greeting, models in memory, load, unload, adapters, stop), and what monitoring asks.

Over the network the owner's take an admin's key, which is of no other use. Knows the models and the running server's
door.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.routing import Route

from freehold.base.machine import resident_bytes
from freehold.base.serving import LoadedInfo
from freehold.base.version import __version__
from freehold.serve.http.core.call import HttpCall, route
from freehold.serve.http.core.fields import Name, WireReply
from freehold.serve.http.core.problems import Refused
from freehold.serve.remote import ADMIN_PROTOCOL


class ModelRequest(Struct, kw_only=True):
    """Which model to load or unload."""

    model: Name


class AddRequest(Struct, kw_only=True):
    """Which adapter to put beside a model, from which local file or folder."""

    model: Name
    name: Name
    path: Annotated[str, Meta(min_length=1, max_length=4096)]


class RemoveRequest(Struct, kw_only=True):
    """Which adapter to take away."""

    model: Name
    name: Name


class StopRequest(Struct, kw_only=True):
    """How to stop: `now` cuts streams off."""

    now: bool = False


def admin_routes() -> list[Route]:
    """Return the routes."""
    return [
        route("GET", "/admin/hello", hello, audience="admin"),
        route("GET", "/admin/ps", ps, audience="admin"),
        route("POST", "/admin/load", load, ModelRequest, audience="admin"),
        route("POST", "/admin/unload", unload, ModelRequest, audience="admin"),
        route("POST", "/admin/adapters/add", add_adapter, AddRequest, audience="admin"),
        route("POST", "/admin/adapters/remove", remove_adapter, RemoveRequest, audience="admin"),
        route("POST", "/admin/stop", stop, StopRequest, audience="admin"),
    ]


async def hello(call: HttpCall) -> None:
    """Return the program's name and protocol version."""
    door, started_at = call.server.door, call.server.started_at
    about = {"version": __version__, "protocol": ADMIN_PROTOCOL, "pid": os.getpid()}
    await call.answer({**about, "url": door.url if door else "", "started_at": started_at})


async def ps(call: HttpCall) -> None:
    """List the models that are loaded or loading."""
    loading = {name: {"done": d, "total": t} for name, (d, t) in call.server.models.loading().items()}
    await call.answer({"models": [row(each) for each in call.server.models.loaded()], "loading": loading})


async def load(call: HttpCall) -> None:
    """Load a model and describe it."""
    request, _ = await call.struct(ModelRequest)

    async def work() -> None:
        name = (await call.server.models.use(request.model)).name
        info = next((each for each in call.server.models.loaded() if name in _names(each)), None)
        if info is None:
            raise Refused(409, f"{name} left memory again at once", code="unloaded")
        await call.answer(row(info))

    await call.while_here(work())


def _names(each: LoadedInfo) -> list[str]:
    """List what a model in memory answers to."""
    return [each.name, *(f"{each.name}+{adapter.name}" for adapter in each.info.adapters)]


async def unload(call: HttpCall) -> None:
    """Unload a model."""
    request, _ = await call.struct(ModelRequest)
    await call.server.models.unload(request.model)
    await call.answer({})


async def add_adapter(call: HttpCall) -> None:
    """Add an adapter to a model, as `model+name`."""
    request, _ = await call.struct(AddRequest)
    path = Path(request.path)
    if not path.is_absolute():
        raise Refused(400, f"path is {request.path[:80]!r}; the server needs an absolute one", param="path")

    async def work() -> None:
        await call.server.models.add_adapter(request.model, request.name, path)
        await call.answer({"model": f"{request.model}+{request.name}"})

    await call.while_here(work())


async def remove_adapter(call: HttpCall) -> None:
    """Remove an adapter; running requests that use it complete."""
    request, _ = await call.struct(RemoveRequest)
    await call.server.models.remove_adapter(request.model, request.name)
    await call.answer({})


async def stop(call: HttpCall) -> None:
    """Stop the server, after running requests or at once."""
    request, _ = await call.struct(StopRequest)
    await call.answer({})
    if call.server.door is not None:
        call.server.door.stop(now=request.now)


def row(each: LoadedInfo) -> dict[str, Any]:
    """Describe a loaded model: ModelInfo's fields and how it is used."""
    return {
        **msgspec.to_builtins(each.info),
        "name": each.name,
        "stats": msgspec.to_builtins(each.stats),
        "in_flight": each.in_flight,
        "restarts": each.restarts,
        "slow_readers": each.slow_readers,
        "pid": each.pid,
        "resident_bytes": resident_bytes(each.pid),
        "expires_at": each.expires_at,
    }


# --- what monitoring asks of a server: health, readiness, metrics and version -----------------------

_EXPOSITION = b"text/plain; version=1.0.0; charset=utf-8"


class VersionReply(WireReply):
    """Freehold's version."""

    version: str


class HealthReply(WireReply):
    """Whether the server lives."""

    status: Literal["ok", "stuck"]
    warnings: list[str] | None = None  # about failures that leave answers right, such as a full disk


class ReadyReply(WireReply):
    """Whether new requests may come, or why not."""

    status: Literal["ready", "not ready"]
    reason: str | None = None


async def health(call: HttpCall) -> None:
    """Return 200 while the server works, or 503 if an engine hangs; GET /ready gives the reason.

    `warnings` report a failing disk."""
    stuck, troubles = bool(call.server.health.stuck()), call.server.troubles()
    more = {"warnings": troubles} if troubles else {}
    await call.answer({"status": "stuck" if stuck else "ok", **more}, 503 if stuck else 200)


async def ready(call: HttpCall) -> None:
    """Return 200 if the server accepts new requests."""
    why = call.server.health.not_ready()
    if why:
        await call.answer({"status": "not ready", "reason": why}, 503)
    else:
        await call.answer({"status": "ready"})


async def metrics(call: HttpCall) -> None:
    """Return metrics for Prometheus."""
    await call.answer(await call.server.metrics.scraped(), kind=_EXPOSITION)


async def version(call: HttpCall) -> None:
    """Return the server's version."""
    await call.answer({"version": __version__})
