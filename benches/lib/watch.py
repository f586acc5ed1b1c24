"""A chat and /health, asked all the while, quiet or beside an attack. Knows a loopback port; knows no attack.

Path: server/attack.py, server/hostile.py -> watched -> Period
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

HOST = "127.0.0.1"
SAMPLE_S = 0.05  # between two questions for health


@dataclass
class Period:
    """What one period gave: seconds of each /health and chat, the most megabytes, what failed."""

    health: list[float] = field(default_factory=list)
    chats: list[float] = field(default_factory=list)
    memory_mb: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float:
        return max(self.health, default=0.0)

    @property
    def chat(self) -> float:
        return statistics.median(self.chats) if self.chats else 0.0


async def watched(
    port: int,
    chat: bytes,
    *,
    chats: int = 1,
    seconds: float = 0.0,
    pause_s: float = 0.0,
    limit_s: float = 120.0,
    resident_mb: Callable[[], float] = lambda: 0.0,
) -> Period:
    """Ask the request `chat` again and again, `chats` times at least and so many seconds, and /health all the while."""
    period, end = Period(), time.perf_counter() + seconds

    async def watch() -> None:
        while True:
            await _timed(port, HEALTH, period.health, period.wrong, limit_s)
            period.memory_mb = max(period.memory_mb, resident_mb())
            await asyncio.sleep(SAMPLE_S)

    watching = asyncio.create_task(watch())
    while len(period.chats) < chats or time.perf_counter() < end:
        await _timed(port, chat, period.chats, period.wrong, limit_s)
        await asyncio.sleep(pause_s)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return period


async def _timed(port: int, data: bytes, into: list[float], wrong: list[str], limit_s: float) -> None:
    began = time.perf_counter()
    try:
        status, body = await asked(port, data, limit_s=limit_s)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
        status, body = 0, repr(e).encode()
    into.append(time.perf_counter() - began)
    if status != 200:
        wrong.append(f"{data[:30]!r}: {status} {body[:100]!r}")


def request(method: str, path: str, body: bytes = b"", secret: str = "") -> bytes:
    """Write a request with a key's secret."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n"
    head += f"Authorization: Bearer {secret}\r\n" if secret else ""
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


async def asked(port: int, data: bytes, source: str = HOST, limit_s: float = 120.0) -> tuple[int, bytes]:
    """Send a request over a connection of its own; return its answer's status and body."""
    async with asyncio.timeout(limit_s):
        reader, writer = await asyncio.open_connection(HOST, port, local_addr=(source, 0))
        try:
            writer.write(data)
            with suppress(ConnectionError):
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            body = await reader.readexactly(int(length[1]) if length else 0)
        finally:
            writer.close()
    return int(head[9:12]), body


HEALTH = request("GET", "/health")
