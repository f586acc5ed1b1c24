"""Holds connections: how many there may be, whose go first when room is needed, and how long heads may take.

A connection without a whole request is idle and may be closed for a newer one: the oldest of the address that has most,
so thousands of silent ones shut no client out. Where none is idle, a few more are let in that may ask for /health and
/ready alone; the next ones are answered 503 at once. Requests are counted apart (call.Gate), by their key.
Knows uvicorn's protocol, bytes of a head, addresses and the clock; knows no route but those two.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from freehold.serve.http.core.auth import Headers
from freehold.serve.http.core.limits import ServerLimits, one_address
from freehold.serve.http.core.problems import Refused, Wording, openai_error, problem

# Two of them contradict each other, and what is checked might not be what is used.
SINGLE = set(b"host origin authorization x-api-key content-type content-length content-encoding".split())
SPARE = "spare"  # no address: the group of those that are let in for probes
# Requests that a client may send before the answers to those before them, in one connection: a read of 256 KB holds
# 6,000, which take 12 MB and a quarter of a second to parse.
MAX_PIPELINED = 32
# Chunks of a body that is sent in such, beside one for each CHUNK_BYTES of them: each is three calls of the parser.
MAX_CHUNKS, CHUNK_BYTES = 1024, 16
CLOSE_S = 1.0  # for a client to take an answer that ends its connection, and with TLS its leave
_CONTINUE = b"HTTP/1.1 100 "  # goes out before a response
TRIM_S = 0.05  # from a connection too many of an address to the end of its oldest idle one: time to ask


class Connections:
    """The connections of a server's network sockets, in the order in which they fell idle."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self.all: set[Guarded] = set()
        self._by_address: Counter[str] = Counter()
        self._idle: dict[str, dict[Guarded, None]] = {}  # address or SPARE -> the idle ones, the oldest first

    def enter(self, one: Guarded) -> bool:
        """Take `one` in, at the cost of an idle one if need be; return whether there was room for it."""
        if len(self.all) >= self.limits.connections and not self._drop_idle():
            one.spare = True
            held_back = len(self.all) - self.limits.connections
            if held_back >= self.limits.held_back and not self._drop(SPARE):
                return False
        self.all.add(one)
        self._by_address[one.address] += 1
        self.idle(one)
        if self._by_address[one.address] > self.limits.address_connections:
            one.loop.call_later(TRIM_S, self._trim, one.address)
        return True

    def leave(self, one: Guarded) -> None:
        """Forget `one`."""
        if one in self.all:
            self.all.discard(one)
            self.busy(one)
            self._by_address[one.address] -= 1
            if not self._by_address[one.address]:
                del self._by_address[one.address]

    def idle(self, one: Guarded) -> None:
        """Note that `one` has no request in progress, from now on."""
        if one in self.all:
            self._idle.setdefault(SPARE if one.spare else one.address, {})[one] = None

    def busy(self, one: Guarded) -> None:
        """Note that `one` has a request in progress."""
        group = SPARE if one.spare else one.address
        mine = self._idle.get(group)
        if mine is not None:
            mine.pop(one, None)
            if not mine:
                del self._idle[group]

    def _drop_idle(self) -> bool:
        """Close the oldest idle connection of the address that has most; False where none is idle."""
        addresses = (each for each in self._idle if each != SPARE)
        address = max(addresses, key=self._by_address.__getitem__, default=None)
        return address is not None and self._drop(address)

    def _trim(self, address: str) -> None:
        if self._by_address[address] > self.limits.address_connections:
            self._drop(address)

    def _drop(self, group: str) -> bool:
        if group not in self._idle:
            return False
        one = next(iter(self._idle[group]))
        self.leave(one)
        one.make_room()
        return True


class Presence:
    """Whether a connection's client is still there. A task for each request that waits for it to leave costs more."""

    __slots__ = ("_flow", "_told", "lost")

    def __init__(self, flow: FlowControl) -> None:
        self._flow, self.lost = flow, False
        self._told: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        """Whether the client has to take something before more is written."""
        return self._flow.write_paused

    def watch(self, told: Callable[[], None] | None) -> None:
        """Call `told` when the client leaves; None: no more. One request of a connection is answered at a time."""
        self._told = told
        if told is not None:
            self._flow.resume_reading()  # or the end would not be read

    def lose(self) -> None:
        """Note that the connection is over."""
        self.lost = True
        if self._told is not None:
            self._told()


class Guarded(HttpToolsProtocol):
    """A connection whose heads come in time and in bounds, one of not too many."""

    door: Connections
    wording: Callable[[str, Headers], Wording]
    address = ""
    spare = False  # for /health and /ready, where all else is taken
    _heading = True  # the head of a request is not whole yet
    _begun = 0  # heads
    _received = 0  # bytes of reads since the one that a head began in
    _head_bytes = 0  # of it, as far as it is parsed
    _body = 0  # bytes of the body,
    _chunks = 0  # its chunks,
    # and bytes of their heads, extensions and trailers, or of what follows a request and begins none
    _framing = 0
    _refusal: Refused | None = None
    _presence: Presence
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._presence = Presence(self.flow)
        self.address = one_address(self.client[0]) if self.client else ""
        if not self.door.enter(self):
            self._turn_away(too_many(self.door.limits.connections))
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.door.leave(self)
        super().connection_lost(exc)
        self._presence.lose()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        begun = self._begun
        super().data_received(data)
        if not self._heading:
            self._disarm()
            self._framing += len(data) if self._begun == begun else 0
            if self._framing > self.door.limits.header_bytes + self._body:
                self._turn_away(_too_fine())
            return
        # Of a read that a head began in, the rest may be a body, or heads before it: _count sees its size in the end.
        self._received += len(data) if self._begun == begun else 1
        if self._received > self.door.limits.header_bytes and not self.transport.is_closing():
            self._turn_away(_too_long(self.door.limits.header_bytes))
        elif self._timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(_too_many_pipelined())
        super().on_message_begin()
        self.scope["extensions"] = {  # type: ignore[typeddict-unknown-key]
            "freehold.abort": self.transport.abort,
            "freehold.presence": self._presence,
            "freehold.spare": self.spare,
        }
        self._begun += 1
        self._heading, self._received, self._head_bytes = True, 0, 0
        self._body = self._chunks = self._framing = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._heading:  # a trailer: what came with the head was checked, and is all that counts
            return
        super().on_header(name, value)
        self._count(len(name) + len(value) + len(b": \r\n"))
        if len(self.headers) > self.door.limits.headers:
            message = f"there are more than {self.door.limits.headers:,} headers; send fewer"
            self._refuse(Refused(431, message, code="headers_too_large"))

    def on_headers_complete(self) -> None:
        self._check_single()
        self._heading = False
        self.door.busy(self)
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":
            self.cycle.transport = _Joined(self.transport)  # type: ignore[assignment]
        if self.spare:
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        """Count a chunk: httptools calls this before the chunk's bytes."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS + self._body // CHUNK_BYTES:
            self._refuse(_too_fine())

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._framing -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.scope["extensions"]["freehold.arrived"] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self.door.idle(self)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, or what a callback refused, in the error format of the path's protocol."""
        refusal = self._refusal or Refused(400, "the request is not valid HTTP/1.1", code="bad_request")
        self._turn_away(refusal)

    def make_room(self) -> None:
        """Close for a newer connection; tell one that has begun to ask."""
        if self._received:
            self._turn_away(too_many(self.door.limits.connections))
        else:
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.door.limits.header_bytes:
            self._refuse(_too_long(self.door.limits.header_bytes))

    def _check_single(self) -> None:
        names = [name for name, _ in self.headers if name in SINGLE]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            self._refuse(Refused(400, f"the header {twice.decode()} came twice", code="header_twice"))
        assert self.parser is not None  # it is what calls
        if b"host" not in names and self.parser.get_http_version() == "1.1":
            self._refuse(Refused(400, "the header host is missing", code="host_missing"))

    def _refuse(self, e: Refused) -> None:
        """End the parsing: httptools raises what a callback raises, and uvicorn then sends a 400, which is ours."""
        self._refusal = e
        raise e

    def _turn_away(self, e: Refused) -> None:
        """Answer without the application, and close."""
        if self.transport.is_closing():
            return
        path = (getattr(self, "url", b"") or b"").partition(b"?")[0].decode("latin-1")
        self.transport.write(_answer(e, type(self).wording(path, dict(self.headers or ()))))
        self.transport.close()
        self.loop.call_later(CLOSE_S, self.transport.abort)

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.door.limits.header_s, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.abort()


class _Joined:
    """What one response is written to: its head goes out with the first part of its body.

    One call of the system less, and the client is woken once.
    """

    __slots__ = ("_head", "_transport", "close", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self.close, self.is_closing = transport, transport.close, transport.is_closing
        self._head: bytes | None = b""  # None: it is sent

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, None
        elif self._head is not None and not data.startswith(_CONTINUE):
            self._head = data
            return
        self._transport.write(data)


def too_many(most: int) -> Refused:
    """Return the refusal of a connection for which there is no room."""
    return Refused(
        503,
        f"too many connections are open; the limit is {most:,}: try again in a moment, over fewer of them",
        code="connections_too_many",
        headers=((b"retry-after", b"1"),),
    )


def full(limits: ServerLimits) -> bytes:
    """Return the whole answer to a connection that is closed before anything of it was read."""
    return _answer(too_many(limits.connections))


def _too_long(most: int) -> Refused:
    message = f"the headers are longer than {most:,} bytes; send fewer or shorter ones"
    return Refused(431, message, code="headers_too_large")


def _too_fine() -> Refused:
    message = "the body has too many small chunks, or too much chunk metadata; send longer chunks"
    return Refused(400, message, code="body_framing")


def _too_many_pipelined() -> Refused:
    return Refused(
        429,
        f"more than {MAX_PIPELINED} requests wait in this connection for the answer to one before them; "
        "send fewer ahead of their answers",
        code="pipelined_too_many",
    )


def _answer(e: Refused, wording: Wording = openai_error) -> bytes:
    body = wording(problem(e))
    headers = (
        (b"connection", b"close"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *e.headers,
    )
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (e.status, HTTPStatus(e.status).phrase.encode(), lines, body)
