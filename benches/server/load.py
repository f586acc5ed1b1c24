"""One HTTP request to a server on this machine, and the pieces of its answer timed as they arrive.

Knows the OpenAI protocol's events; knows no server and no figure. Raw sockets and httptools: the client shares
the processor with the server it measures, so it does little for a piece.
Path: race.py, soak.py or chaos.py -> ask -> Call -> Answer
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httptools

HOST = "127.0.0.1"
LIMIT_S = 600.0
SMALL_WINDOW = 2048  # bytes the kernel may hold for a reader that is to be slow


@dataclass
class Answer:
    """What came back. Times are of time.perf_counter; a piece is all the text that arrived at one time."""

    sent: float = 0.0
    status: int = 0  # 0: nothing came
    pieces: list[float] = field(default_factory=list)
    texts: dict[int, list[str]] = field(default_factory=dict)  # by the index of the choice
    finish: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    error: Any = None
    done: bool = False  # a stream said that it ends here
    body: bytes = b""  # of what was no stream
    headers: dict[str, str] = field(default_factory=dict)
    complete: bool = False  # by HTTP's own framing
    left: bool = False  # it was we who went
    hung: bool = False  # no end within the limit
    ended: float = 0.0

    @property
    def text(self) -> str:
        """The first choice's text."""
        return "".join(self.texts.get(0, []))

    @property
    def ok(self) -> bool:
        """Whether a whole answer came, and nothing else."""
        return self.status == 200 and self.complete and not self.error

    @property
    def explicit(self) -> bool:
        """Whether the server said how it ended: an answer, or an error in the protocol's own words."""
        if self.status != 200:
            return self.status > 0 and self.complete
        return self.complete and (bool(self.finish) or self.error is not None or bool(self.body))

    @property
    def tokens(self) -> int:
        """Tokens of the answer by the server's own account."""
        return int(self.usage.get("completion_tokens", 0))

    @property
    def ttft(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def tpot(self) -> float:
        """Seconds for each token after the first."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.tokens - 1, 1)

    @property
    def e2e(self) -> float:
        """Seconds to the last piece."""
        return self.pieces[-1] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]


class Call(asyncio.Protocol):
    """A connection that carries one request, closed after its answer."""

    def __init__(self, request: bytes, leave_after: int | None, pause_s: float) -> None:
        """`leave_after`: go away after so many pieces. `pause_s`: read so slowly."""
        self.answer = Answer()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first = asyncio.Event()  # set with the first piece, and at the end
        self._request, self._leave_after, self._pause_s = request, leave_after, pause_s
        self._parser = httptools.HttpResponseParser(self)
        self._rest, self._now, self._stream = b"", 0.0, False
        self._transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = transport  # type: ignore[assignment]
        self.answer.sent = time.perf_counter()
        self._transport.write(self._request)
        if self._leave_after == 0:
            self.leave()

    def data_received(self, data: bytes) -> None:
        """Take what came; a slow reader then looks away for a while."""
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self.answer.error = f"not HTTP: {problem}"
            self._transport.abort()
        if self._pause_s and not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self._pause_s, self._resume)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self.answer.status = self._parser.get_status_code()
        self._stream = self.answer.headers.get("content-type", "").startswith("text/event-stream")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        if not self._stream:
            self.answer.body += body
            return
        *events, self._rest = (self._rest + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                self._event(event[5:].strip())

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.answer.complete = True
        if self.answer.body:
            self._whole()
        self._transport.close()

    def connection_lost(self, problem: Exception | None) -> None:
        """End, whichever side closed."""
        self.answer.ended = time.perf_counter()
        self.first.set()
        if not self.over.done():
            self.over.set_result(None)

    def leave(self) -> None:
        """Go away in the middle."""
        self.answer.left = True
        self._transport.abort()

    def _event(self, data: bytes) -> None:
        answer = self.answer
        if data == b"[DONE]":
            answer.done = True
            return
        event = json.loads(data)
        answer.usage = event.get("usage") or answer.usage
        answer.error = event.get("error") or answer.error
        for choice in event.get("choices") or []:
            self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        answer, index = self.answer, choice.get("index", 0)
        text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        if choice.get("finish_reason"):
            answer.finish[index] = choice["finish_reason"]
        if text:
            answer.texts.setdefault(index, []).append(text)
            if answer.pieces[-1:] != [self._now]:
                answer.pieces.append(self._now)
            self.first.set()
            if len(answer.pieces) == self._leave_after:
                self.leave()

    def _whole(self) -> None:
        """Read an answer that was no stream."""
        try:
            body = json.loads(self.answer.body)
        except ValueError:
            return
        if isinstance(body, dict):
            self.answer.error = body.get("error")
            self.answer.usage = body.get("usage") or {}
            for choice in body.get("choices") or []:
                self._choice({**choice, "delta": choice.get("message")})

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


def _request(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{port}", "Connection: close"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def start(
    port: int,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    leave_after: int | None = None,
    pause_s: float = 0.0,
) -> Call:
    """Send a request; bytes go as they are, None is a GET, anything else is JSON. Raises OSError."""
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    request = _request(port, "GET" if body is None else "POST", path, raw, headers or {})
    sock = socket.socket()
    if pause_s:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_WINDOW)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(sock, (HOST, port))
    except OSError:
        sock.close()
        raise
    _, call = await loop.create_connection(partial(Call, request, leave_after, pause_s), sock=sock)
    return call


async def finish(call: Call, limit_s: float = LIMIT_S) -> Answer:
    """Wait for the end of an answer; one that does not come in time has `hung`."""
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.shield(call.over)
    except TimeoutError:
        call.leave()
        call.answer.hung = True
        await call.over
    return call.answer


async def ask(port: int, path: str, body: Any = None, *, limit_s: float = LIMIT_S, **how: Any) -> Answer:
    """Send a request and wait for its answer, as `start` and `finish` do."""
    return await finish(await start(port, path, body, **how), limit_s)


def completion(model: str, prompt: Any, max_tokens: int, **fields: Any) -> dict[str, Any]:
    """Make the body of a streamed greedy completion of exactly `max_tokens` tokens."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    return {**body, "ignore_eos": True, "stream_options": {"include_usage": True}, **fields}
