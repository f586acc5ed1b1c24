"""Asks an engine's own routes, beside the requests that clients make: what it is, whether it answers, what it loads.

    async with EngineClient("http://127.0.0.1:8000", key="...") as ask:
        said = await ask.get("/version")       # None where nothing answers
        said.status, said.member("version")

No prompt is ever sent here. Follows no redirect, uses no proxy, reads little. Knows no engine.
Path: attach.py, ollama.py -> EngineClient.get -> aiohttp
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from freehold.providers.hop import http_client

MOST = 4 << 20  # bytes of an answer: an engine's settings, its models
ASKED_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineReply:
    """An answer of one of its routes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body; None where it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def member(self, *path: str) -> Any:
        """Return a member of a member of the body; None where there is none."""
        value = self.json()
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


class EngineClient:
    """Connections to one engine, for its own routes."""

    def __init__(self, url: str, *, socket: Path | None = None, key: str = "") -> None:
        """`url`: without a path. Made inside a running event loop."""
        aiohttp = http_client()
        connector = aiohttp.UnixConnector(str(socket)) if socket is not None else aiohttp.TCPConnector()
        headers = {"User-Agent": "freehold"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._url = url.rstrip("/")
        self._faults = aiohttp.ClientError, OSError, TimeoutError
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()

    async def get(self, path: str, *, limit_s: float = ASKED_S) -> EngineReply | None:
        """Return what a route says; None where nothing answers in time."""
        return await self._request("GET", path, None, limit_s)

    async def post(self, path: str, body: Any, *, limit_s: float = ASKED_S) -> EngineReply | None:
        """Return what a route says to a JSON body; None where nothing answers in time."""
        return await self._request("POST", path, body, limit_s)

    async def _request(self, method: str, path: str, body: Any, limit_s: float) -> EngineReply | None:
        aiohttp = http_client()
        try:
            async with self._session.request(
                method,
                self._url + path,
                json=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=limit_s),
            ) as reply:
                received = bytearray()
                async for part in reply.content.iter_chunked(1 << 16):
                    received += part
                    if len(received) > MOST:
                        break
                return EngineReply(reply.status, dict(reply.headers), bytes(received[:MOST]))
        except self._faults:
            return None
