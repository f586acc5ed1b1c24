"""Asks an engine for a completion and times the pieces of its answer as they arrive.

Raw sockets and httptools: the client shares processors with the engine that it times, so it does little for a piece.
Knows OpenAI's completions and their events; knows no figure. It asks engines and servers of one's own.
Path: measuring.measure, benches/outgrow/predicted.py -> EngineDoor.ask -> TimedAnswer
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from freehold.errors import ServerUnreachable, UpstreamFailed, UsageError

LIMIT_S = 120.0  # of one answer
_MOST_ERROR = 300  # characters of an engine's error that are passed on


@dataclass
class TimedAnswer:
    """What came back. Times are of time.perf_counter; a piece is all tokens that arrived at one time."""

    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""

    @property
    def ttft(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def tpot(self) -> float:
        """Seconds for each token after the first."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.tokens - 1, 1)


@dataclass(frozen=True)
class EngineDoor:
    """Where an engine or a server of one's own answers, such as http://127.0.0.1:8000/v1."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    socket: Path | None = None
    temperature: float = 1.0  # drawn tokens are hard to draft: steps of one token each are what is timed

    async def ask(self, prompt: str, tokens: int, limit_s: float = LIMIT_S) -> TimedAnswer:
        """Ask for exactly `tokens` tokens; a failure is in the answer's `error`. Raises ServerUnreachable."""
        body: dict[str, Any] = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "stream": True}
        body |= {
            "temperature": self.temperature,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        return (await self._call("POST", "/completions", body, limit_s)).answer

    async def models(self) -> dict[str, str]:
        """Return the models that it offers, and who made their engine as far as it tells."""
        call = await self._call("GET", "/models", None, LIMIT_S)
        try:
            rows = json.loads(call.body)["data"]
            return {str(row["id"]): str(row.get("owned_by", "")) for row in rows}
        except (ValueError, KeyError, TypeError) as e:
            raise UpstreamFailed(
                f"{self.url} lists no models: {call.answer.error or e}", "is it an OpenAI API with /v1?"
            ) from e

    def _address(self) -> tuple[SplitResult, str, int]:
        """Return the parts of its address, its host and its port. Raises UsageError."""
        try:
            parts = urlsplit(self.url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            if parts.scheme in ("http", "https") and parts.hostname:
                return parts, parts.hostname, port
        except ValueError:
            pass
        raise UsageError(
            f"{self.url} is not a valid address of a server", "for example http://127.0.0.1:8000/v1"
        )

    async def _call(self, method: str, path: str, body: Any, limit_s: float) -> _TimedCall:
        parts, host, port = self._address()
        raw = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
        ]
        lines += ["Connection: close", "Content-Type: application/json", f"Content-Length: {len(raw)}"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        request = "\r\n".join([*lines, "", ""]).encode() + raw
        loop = asyncio.get_running_loop()
        try:
            if self.socket is not None:
                _, call = await loop.create_unix_connection(lambda: _TimedCall(request), str(self.socket))
            else:
                tls = parts.scheme == "https" or None
                _, call = await loop.create_connection(lambda: _TimedCall(request), host, port, ssl=tls)
        except (OSError, UnicodeError) as e:  # the second: a name that no resolver takes
            raise ServerUnreachable(
                f"no server answers at {self.socket or self.url}: {e}", "is it running?"
            ) from e
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(call.over)
        except TimeoutError:
            call.answer.error = f"no end within {limit_s:g} s"
        finally:
            call.close()
        return call


class _TimedCall(asyncio.Protocol):
    """A connection that carries one request, closed after its answer."""

    def __init__(self, request: bytes) -> None:
        import httptools

        self.answer, self.body = TimedAnswer(), b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._parser = request, httptools.HttpResponseParser(self)
        self._rest, self._now, self._stream = b"", 0.0, False
        self._transport: asyncio.Transport | None = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.answer.sent = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        import httptools

        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self.answer.error = f"not HTTP: {e}"
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._stream = value.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        if not self._stream:
            self.body += body
            return
        *events, self._rest = (self._rest + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                self._event(event[5:].strip())

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200 and not self.answer.error:
            self.answer.error = f"status {status}: {self.body[:_MOST_ERROR].decode('utf-8', 'replace')}"
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            return
        answer = self.answer
        try:
            event = json.loads(data)
        except ValueError:
            answer.error = "an event that is not JSON"
            return
        if problem := event.get("error"):
            answer.error = str(problem)[:_MOST_ERROR]
        if usage := event.get("usage"):
            answer.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            answer.tokens = int(usage.get("completion_tokens") or 0)
        # An event's text may be empty: a character of several tokens is sent when it is whole.
        if event.get("choices") and answer.pieces[-1:] != [self._now]:
            answer.pieces.append(self._now)
