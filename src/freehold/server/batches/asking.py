"""One line of a batch through the server's own routes, without a connection.

The route reads the body and answers as it answers anybody, so a line's answer is what a client would have got.
Knows ASGI's two functions; knows no file. Path: Desk -> Asker.ask -> Endpoint -> a handler -> LineAnswer
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.server.core.call import JSON, Endpoint, HttpCall, Server
from freehold.server.core.keys import Key
from freehold.server.core.problems import Refused


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What came of a line."""

    status: int
    body: Any
    request_id: str
    headers: Mapping[bytes, bytes]


class Asker:
    """The routes a batch may ask, by their paths."""

    def __init__(self, server: Server, endpoints: Mapping[str, Endpoint]) -> None:
        self.server, self._endpoints = server, endpoints

    async def ask(self, tenant: str, path: str, body: Mapping[str, Any]) -> LineAnswer:
        """Ask `path` for a tenant, after everybody who waits for an answer."""
        exchange = _Exchange(msgspec.json.encode({**body, "priority": "batch"}))
        scope: dict[str, Any] = {"type": "http", "path": path, "headers": [JSON], "query_string": b""}
        call = scope["freehold.call"] = HttpCall(self.server, scope, exchange.receive, exchange.send)
        try:
            call.key = self._key(tenant)
            if body.get("stream"):
                raise Refused(400, "stream is true; a batch has no reader for it", param="stream")
            await self._endpoints[path](scope, exchange.receive, exchange.send)
        except Exception as e:
            await call.refuse(call.problem(e))
        finally:
            call.close()
            self.server.metrics.answered(call.route, call.status or 499)
        return exchange.answer(call)

    def _key(self, tenant: str) -> Key | None:
        """Return the key that a batch was made with, and whose scope and budget hold for its lines too."""
        key = self.server.guard.keys.named(tenant) if tenant else None
        if tenant and key is None:
            raise Refused(401, f"the key {tenant} was revoked", code="invalid_api_key")
        return key


class _Exchange:
    """A body that is there, and an answer that is collected."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._sent: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}

    async def receive(self) -> MutableMapping[str, Any]:
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()  # nobody hangs up
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self._headers |= dict(message.get("headers", ()))
        self._sent.append(message.get("body", b""))

    def answer(self, call: HttpCall) -> LineAnswer:
        body = msgspec.json.decode(b"".join(self._sent))
        return LineAnswer(call.status, body, call.request_id.decode(), self._headers)
