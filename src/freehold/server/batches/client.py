"""One line of a batch through the server's own routes, without a connection.

The route handles the body as it handles a client's, so a line has the answer that a client would get.
Knows ASGI's two functions; knows no file. Path: Desk -> Asker.ask -> Endpoint -> a handler -> LineAnswer
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.server.batches.record import BatchLine
from freehold.server.core.call import JSON, LABEL_HEADER, Endpoint, HttpCall, Server
from freehold.server.core.keys import Key
from freehold.server.core.problems import Refused


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """The answer to a line."""

    status: int
    parts: tuple[bytes, ...]  # of its body, JSON of one line
    request_id: str
    headers: Mapping[bytes, bytes]

    @property
    def body(self) -> msgspec.Raw:
        """The answer's JSON as it came; joined here, so ask for it in a thread."""
        return msgspec.Raw(b"".join(self.parts))


class Asker:
    """The routes a batch may ask, by their paths."""

    def __init__(self, server: Server, endpoints: Mapping[str, Endpoint]) -> None:
        self.server, self._endpoints = server, endpoints

    async def ask(self, tenant: str, path: str, line: BatchLine, labels: Sequence[str] = ()) -> LineAnswer:
        """Request `path` for a tenant, with priority `batch` and the labels of its batch."""
        body, streams = await asyncio.to_thread(line.request)
        exchange = _Exchange(body)
        headers = [JSON, (LABEL_HEADER, ",".join(labels).encode("latin-1"))] if labels else [JSON]
        scope: dict[str, Any] = {"type": "http", "path": path, "headers": headers, "query_string": b""}
        call = scope["freehold.call"] = HttpCall(self.server, scope, exchange.receive, exchange.send)
        call.door = "batch"
        try:
            call.key = self._key(tenant)
            if streams:
                raise Refused(400, "stream is true; a batch has no reader for it", param="stream")
            await self._endpoints[path](scope, exchange.receive, exchange.send)
        except Exception as e:
            await call.refuse(call.problem(e))
        finally:
            call.close()
            del scope["freehold.call"]  # as in Gate: together they would wait for the garbage collector
            self.server.metrics.answered(call.route, call.status or 499)
        return exchange.answer(call)

    def _key(self, tenant: str) -> Key | None:
        """Return the key that the batch was created with; its scope and budget apply to the lines."""
        key = self.server.guard.keys.named(tenant) if tenant else None
        if tenant and key is None:
            raise Refused(401, f"the key {tenant} was revoked", code="invalid_api_key")
        return key


class _Exchange:
    """ASGI's two functions over a given body; collects the answer."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._sent: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}

    async def receive(self) -> MutableMapping[str, Any]:
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()  # there is no client that could disconnect
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self._headers |= dict(message.get("headers", ()))
        self._sent.append(message.get("body", b""))

    def answer(self, call: HttpCall) -> LineAnswer:
        return LineAnswer(call.status, tuple(self._sent), call.request_id.decode(), self._headers)
