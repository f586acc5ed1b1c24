"""What monitoring asks of a server: health, readiness, metrics and version.

Knows what core/ counts and watches; knows no model and no protocol.
Path: Gate -> health, ready, metrics, version -> Health.stuck, Metrics.exposition
"""

from __future__ import annotations

from typing import Literal

from freehold.server.core.call import HttpCall
from freehold.server.core.reply import WireReply
from freehold.version import __version__

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
    """Say 200 while the server lives, 503 when an engine hangs (why: GET /ready); warn of a disk that fails."""
    stuck, troubles = bool(call.server.health.stuck()), call.server.troubles()
    more = {"warnings": troubles} if troubles else {}
    await call.answer({"status": "stuck" if stuck else "ok", **more}, 503 if stuck else 200)


async def ready(call: HttpCall) -> None:
    """Say 200 when new requests may come."""
    why = call.server.health.not_ready()
    await call.answer(
        {"status": "not ready", "reason": why} if why else {"status": "ready"}, 503 if why else 200
    )


async def metrics(call: HttpCall) -> None:
    """Answer a scrape."""
    await call.answer(call.server.metrics.exposition(), kind=_EXPOSITION)


async def version(call: HttpCall) -> None:
    """Say which version this is."""
    await call.answer({"version": __version__})
