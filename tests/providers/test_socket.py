"""A provider on a Unix socket of this machine, and one whose engine has a wire of its own."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web

from freehold.route.providers import upstream
from freehold.route.providers.compatible import CompatibleWire
from freehold.route.providers.contract import Demands, Provider, RemoteModel, Secret
from freehold.route.providers.hop import Hop
from tests.providers.sending import cleared, joined

EVENTS = [
    {"choices": [{"index": 0, "delta": {"content": "over a socket"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]


class OwnWire(CompatibleWire):
    def think(self, body: dict[str, Any], demands: Demands) -> None:
        body["stated_by"] = "the engine's own wire"


def asked_on_a_socket(**more: Any) -> tuple[str, web.Request, dict[str, Any]]:
    """Ask a server on a socket; return the answer, the request that came and its body."""
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.extend([request, await request.json()])
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for event in EVENTS:
            await reply.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await reply.write(b"data: [DONE]\n\n")
        return reply

    async def work() -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        with tempfile.TemporaryDirectory(prefix="fh-") as folder:
            path = Path(folder) / "s.sock"
            await web.UnixSite(runner, str(path)).start()
            hop = Hop()
            place = Provider("far", "openai-compatible", "http://engine/v1", Secret("s3cret"), socket=path)
            try:
                coming = await upstream.start(
                    hop, cleared(), RemoteModel(place, "m"), first_token_s=5, timeout_s=5, **more
                )
                return joined([piece async for piece in coming]).text
            finally:
                await hop.close()
                await runner.cleanup()

    return asyncio.run(work()), seen[0], seen[1]


def test_a_provider_on_a_socket_answers_and_its_host_is_only_a_name():
    text, request, _ = asked_on_a_socket()
    assert text == "over a socket"
    assert request.headers["Host"] == "engine"
    assert request.headers["Authorization"] == "Bearer s3cret"


def test_an_engine_is_asked_on_its_own_wire():
    assert asked_on_a_socket(wire=OwnWire())[2]["stated_by"] == "the engine's own wire"
