"""The stand-in's server: HTTP by hand, so that every byte received is kept and every byte sent can be wrong."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from tests.providers.standin.anthropic import AnthropicStandIn
from tests.providers.standin.billing import Account, Bill, Tariff
from tests.providers.standin.gemini import GeminiStandIn
from tests.providers.standin.openai import OpenAIStandIn
from tests.providers.standin.script import Answer, Fault, Tokens
from tests.providers.standin.wire import Asked, Frame, StandInWire

WIRES: list[StandInWire] = [
    *(OpenAIStandIn(dialect) for dialect in ("openai", "mistral", "deepseek", "compatible")),
    AnthropicStandIn(),
    GeminiStandIn(),
]
Behaviour = Answer | Fault
PAGE = b"<html><head><title>502</title></head><body>Bad gateway</body></html>"


@dataclass
class Received:
    """One request as it came."""

    number: int
    method: str
    path: str  # with its query
    headers: dict[str, str]  # names in lower case
    body: bytes
    raw: bytes = field(repr=False)  # every byte of it
    asked: Asked | None = None
    ended: str = ""  # whole, broken, left, or a fault's kind, once it is over
    began_s: float = 0.0  # time.monotonic()
    ended_s: float = 0.0


class StandIn:
    """A server on a thread of its own, at a random port of the loopback. Use it as a context manager.

    `say`: what the next requests get, in order; then `behave(received)`, or a plain answer that quotes the last user
    turn's length. Providers' urls: `url("openai")` and so on.
    """

    def __init__(self, tariffs: dict[str, Tariff] | None = None) -> None:
        self.account = Account(tariffs or {})
        self.received: list[Received] = []
        self.say: deque[Behaviour] = deque()
        self.behave: Callable[[Received], Behaviour] | None = None
        self.checks = True  # refuse what the provider would refuse
        self.hour = 0  # UTC, by which hourly prices go
        self.connections = 0
        self._ids = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def url(self, dialect: str) -> str:
        """The url of a provider of one kind: openai, mistral, deepseek, compatible, anthropic, gemini."""
        base = f"http://127.0.0.1:{self.port}/{dialect}"
        return base if dialect == "deepseek" else base + ("/v1beta" if dialect == "gemini" else "/v1")

    @property
    def bills(self) -> list[Bill]:
        return self.account.bills

    @property
    def nano(self) -> int:
        """What everything cost, in nano-dollars."""
        return self.account.nano

    @property
    def bytes_received(self) -> bytes:
        return b"".join(r.raw for r in self.received)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 5.0) -> bool:
        """Wait until the condition holds; return whether it does."""
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            time.sleep(0.005)
        return condition()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 26, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while (received := await self._read(reader)) is not None:
                if not await self._answer(received, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Received | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as e:
            if e.partial:
                self.received.append(Received(len(self.received), "", "", {}, b"", e.partial))
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        body, raw = b"", head
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size = await reader.readuntil(b"\r\n")
                part = await reader.readexactly(int(size, 16) + 2)
                raw += size + part
                body += part[:-2]
                if len(part) == 2:
                    break
        elif length := int(headers.get("content-length", 0)):
            body = await reader.readexactly(length)
            raw += body
        received = Received(len(self.received), method, path, headers, body, raw, began_s=time.monotonic())
        self.received.append(received)
        return received

    async def _answer(
        self, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; return whether the connection can take another."""
        path = received.path.partition("?")[0]
        if path.startswith("http://"):  # to a proxy
            path = "/" + path.split("/", 3)[3]
        wire = next((w for w in WIRES if w.matches(path)), None)
        if wire is None:
            return await self._send(writer, received, 404, b'{"error": {"message": "no such path"}}')
        wrong = wire.check(path, received.headers, received.body) if self.checks else ""
        if wrong:
            status = 401 if "API key" in wrong else 400
            return await self._send(writer, received, status, wire.error(status, wrong, ""))
        asked = received.asked = wire.read(received.path, received.body)
        behaviour = self.say.popleft() if self.say else self._usual(received)
        if isinstance(behaviour, Fault) and behaviour.kind not in BREAKS:
            return await self._fault(writer, received, wire, behaviour, reader)
        fault = behaviour if isinstance(behaviour, Fault) else None
        answer = fault.answer if fault else behaviour
        assert isinstance(answer, Answer)
        self._ids += 1
        answer_id = f"standin-{self._ids}"
        tokens = answer.tokens or counted(asked, answer)
        if asked.kind in ("embed", "count"):
            body = wire.vectors(asked, tokens) if asked.kind == "embed" else wire.count(asked, tokens)
            frames = [Frame(body, 0)]
            tokens = Tokens(tokens.prompt, 0) if asked.kind == "embed" else Tokens(0, 0)
        elif asked.stream:
            frames = wire.events(asked, answer, tokens, answer_id)
        else:
            frames = [Frame(wire.whole(asked, answer, tokens, answer_id), tokens.output)]
        if fault is not None and fault.kind == "stray":
            await self._send(writer, received, 200, frames[0].data)
            await asyncio.sleep(0.02)
            return await self._send(writer, received, 200, frames[0].data)
        sending = _Sending(self, received, reader, writer, answer.event_s, fault)
        return await sending.run(wire, asked, frames, tokens, answer_id)

    def _usual(self, received: Received) -> Behaviour:
        if self.behave is not None:
            return self.behave(received)
        assert received.asked is not None
        return Answer((f"{len(received.asked.last)}", " characters"))

    async def _send(
        self, writer: asyncio.StreamWriter, received: Received, status: int, body: bytes,
        kind: str = "application/json", more: str = "",
    ) -> bool:  # fmt: skip
        received.ended, received.ended_s = f"status {status}", time.monotonic()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return True

    async def _fault(
        self, writer: asyncio.StreamWriter, received: Received, wire: StandInWire, fault: Fault,
        reader: asyncio.StreamReader,
    ) -> bool:  # fmt: skip
        if fault.kind == "status":
            more = f"Retry-After: {fault.retry_after}\r\n" if fault.retry_after else ""
            body = wire.error(fault.status, fault.message, fault.code)
            return await self._send(writer, received, fault.status, body, more=more)
        if fault.kind == "html":
            return await self._send(writer, received, 200, PAGE, "text/html; charset=utf-8")
        if fault.kind == "redirect":
            return await self._send(writer, received, 307, b"", more=f"Location: {fault.to}\r\n")
        received.ended = fault.kind
        if fault.kind == "garbage":
            writer.write(b"\x00\x01\x02 this is not HTTP \xff\r\n\r\n")
            await writer.drain()
        elif fault.kind == "hang":
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
        elif fault.kind == "reset":
            reset(writer)
        received.ended_s = time.monotonic()
        return False


BREAKS = ("cut", "cut_reset", "bad_utf8", "wrong_length", "endless", "short", "stall", "error_event", "stray")


def counted(asked: Asked, answer: Answer) -> Tokens:
    """Tokens where a test states none: one for 4 characters of the prompt begun, one for each event made."""
    made = len(answer.pieces) + len(answer.thinking) + 2 * len(answer.calls) + bool(answer.refusal)
    return Tokens(len(asked.text) // 4 + 1, made * answer.answers, thought=len(answer.thinking))


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Sending:
    """One 200's body on its way, broken as a fault says; charges for what was made."""

    def __init__(
        self, standin: StandIn, received: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        event_s: float, fault: Fault | None,
    ) -> None:  # fmt: skip
        self._standin, self._received, self._reader, self._writer = standin, received, reader, writer
        self._event_s, self._fault = event_s, fault
        self._chunked = False
        self._sent = 0  # bytes of the body

    async def run(
        self, wire: StandInWire, asked: Asked, frames: list[Frame], tokens: Tokens, answer_id: str
    ) -> bool:
        made = 0
        fault = self._fault
        kind = fault.kind if fault else ""
        if kind == "endless" and asked.stream:
            ends = (i for i, frame in enumerate(frames) if b'"finish_reason": "' in frame.data)
            frames = frames[: next(ends, len(frames) - 1)]  # a reason makes it whole
        if kind == "short" and fault is not None:
            body = b"".join(frame.data for frame in frames)[: -fault.at]
            frames = [Frame(body, frames[-1].made)]
        if kind == "error_event" and fault is not None and asked.stream:
            frames = [*frames[: fault.at], Frame(wire.error_event(fault.message), 0)]

        def charge(whole: bool) -> None:
            made_ = tokens if whole else Tokens(tokens.prompt, min(made, tokens.output), tokens.cached)
            number, hour = self._received.number, self._standin.hour
            if asked.kind != "count":
                account = self._standin.account
                account.charge(number, asked.model, answer_id, made_, whole=whole, hour=hour, kind=asked.kind)

        self._head(asked.stream, sum(len(f.data) for f in frames))
        try:
            for number, frame in enumerate(frames):
                if self._event_s:
                    await self._pause()
                made = max(made, frame.made)
                if number == len(frames) - 1 and kind in ("", "bad_utf8"):
                    charge(True)  # the bill is written before the client can have the answer
                    self._received.ended, self._received.ended_s = kind or "whole", time.monotonic()
                if not await self._piece(frame.data):
                    return False
            if self._chunked:
                self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()
            return kind in (
                "",
                "bad_utf8",
                "endless",
                "short",
            )  # whose body has an end, though its answer has none
        except ConnectionError:
            return False
        finally:
            if not self._received.ended or kind not in ("", "bad_utf8"):
                self._received.ended, self._received.ended_s = kind or "left", time.monotonic()
                charge(False)

    async def _pause(self) -> None:
        """Wait, and notice meanwhile that the client is gone."""
        gone = asyncio.ensure_future(self._reader.read(1))
        done, _ = await asyncio.wait([gone], timeout=self._event_s)
        if done:
            gone.exception()  # a reset; retrieved, so that nothing is logged of it
            raise ConnectionError("left")
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone

    def _head(self, stream: bool, size: int) -> None:
        kind = "text/event-stream" if stream else "application/json"
        if self._fault is not None and self._fault.kind == "wrong_length":
            size += 10
            stream = False
        self._chunked = stream
        length = "Transfer-Encoding: chunked" if stream else f"Content-Length: {size}"
        self._writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode())

    async def _piece(self, data: bytes) -> bool:
        """Send a part of the body; return whether the fault lets it continue."""
        fault = self._fault
        if fault is not None and fault.kind in ("cut", "cut_reset", "stall", "bad_utf8"):
            room = fault.at - self._sent
            if len(data) > room >= 0:
                if fault.kind == "bad_utf8":
                    data = data[:room] + b"\xff" + data[room + 1 :]
                else:
                    self._part(data[:room])
                    return await self._broken(fault.kind)
        self._sent += len(data)
        self._part(data)
        if self._event_s or self._writer.transport.get_write_buffer_size() > 1 << 16:
            await self._writer.drain()
        return True

    def _part(self, data: bytes) -> None:
        if data:
            self._writer.write(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    async def _broken(self, kind: str) -> bool:
        await self._writer.drain()
        if kind == "stall":
            while await self._reader.read(1 << 16):
                pass
        elif kind == "cut_reset":
            await asyncio.sleep(0.02)  # a reset would take back what was not read
            reset(self._writer)
        return False
