"""One request on its way through the server: who asks, what arrived, and how to answer.

Knows ASGI, the request id and the client's presence; knows no protocol's fields.
Path: auth.Guard -> Gate -> Endpoint -> Call -> openai/*
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from freehold.errors import EngineClosed
from freehold.server.auth import Guard, Headers
from freehold.server.contract import Models
from freehold.server.limits import Bodies, Gone, Limits, body_pieces, parse, read_body, typed
from freehold.server.openai.responses.store import Responses
from freehold.server.problems import Problem, Wording, openai_error, problem

if TYPE_CHECKING:
    from freehold.server.health import Health
    from freehold.server.metrics import Metrics
    from freehold.server.openai.batch.desk import Desk
    from freehold.store import Store

T = TypeVar("T", bound=msgspec.Struct)
_log = logging.getLogger("freehold.server")
RawHeaders = Sequence[tuple[bytes, bytes]]
_REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}")
JSON = (b"content-type", b"application/json")


class Door(Protocol):
    """The running server, as far as a request may touch it."""

    url: str

    def stop(self, *, now: bool = False) -> None: ...


@dataclass
class Server:
    """What all requests share."""

    models: Models
    guard: Guard
    limits: Limits
    metrics: Metrics
    health: Health
    keep_alive_s: float = 10.0  # an event stream is never silent for longer
    door: Door | None = None  # serve.py fills it in
    default_model: str = ""  # for the tokenizer's routes, which may come without a name
    store: Store | None = None  # what lies on disk; without it nobody can look at it or change it
    chores: int = 0  # downloads and the like that are under way
    started_at: float = field(default_factory=time.time)
    bodies: Bodies = field(default_factory=Bodies)
    calls: set[Call] = field(default_factory=set)  # those that a model is at work for
    responses: Responses = field(default_factory=Responses)
    desk: Desk | None = None  # files and batches; None: this server has no folder for them


class Call:
    """One request. `tenant` is "" without a key; `route` is for the metrics."""

    def __init__(self, server: Server, scope: Scope, receive: Receive, send: Send) -> None:
        self.server, self.scope, self._receive, self._send = server, scope, receive, send
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12).encode()
        self.tenant = ""
        self.route = "other"
        self.wording: Wording = openai_error
        self.statuses: Mapping[
            int, int
        ] = {}  # where a protocol has a number of its own for one of problems.py
        self.status = 0  # 0: nothing was sent
        self.complete = False
        self.started = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._ended: Exception | None = None

    async def struct(self, kind: type[T]) -> tuple[T, dict[str, Any]]:
        """Read the body; return it as `kind`, and as it came."""
        raw = parse(await read_body(self._receive, self.headers, self.server.limits, self.server.bodies))
        return typed(raw, kind), raw

    def pieces(self, most: int | None = None) -> AsyncIterator[bytes]:
        """Give the body as it comes, for an upload; `most`: bytes, where the usual limit is not the one."""
        return body_pieces(self._receive, self.headers, self.server.limits, most)

    async def while_here(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, but cancel it when the client closes its connection (Gone) or on cut() (EngineClosed)."""
        self._task = asyncio.current_task()
        assert self._task is not None
        watcher = asyncio.create_task(self._watch())
        self.server.calls.add(self)
        try:
            await work
        except asyncio.CancelledError:
            if self._ended is None:
                raise
            self._task.uncancel()
            raise self._ended from None
        finally:
            self._task = None
            self.server.calls.discard(self)
            watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.complete:
            self._end(Gone())

    def cut(self) -> None:
        """End the work at once: the server stops."""
        self._end(EngineClosed("the server is stopping", "ask again in a moment"))

    def _end(self, why: Exception) -> None:
        if self._task is not None and self._ended is None:
            self._ended = why
            self._task.cancel()

    async def head(self, status: int, headers: RawHeaders) -> None:
        """Send status and headers; the request id goes with every answer."""
        self.status = status
        names = (b"x-request-id", b"request-id")  # OpenAI's clients read the one, Anthropic's the other
        all_headers = [*headers, *((name, self.request_id) for name in names)]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})

    async def body(self, data: bytes, *, more: bool = False) -> None:
        """Send a part of the body, or with `more` False the last one."""
        self.complete = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(
        self, value: object, status: int = 200, headers: RawHeaders = (), kind: bytes = b"application/json"
    ) -> None:
        """Send a whole answer; what is not bytes is encoded as JSON."""
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        length = (b"content-length", b"%d" % len(data))
        await self.head(status, [(b"content-type", kind), length, *headers])
        await self.body(data)

    async def refuse(self, trouble: Problem) -> None:
        """Answer with an error, in the protocol's words."""
        trouble = replace(trouble, request_id=self.request_id.decode())
        status = self.statuses.get(trouble.status, trouble.status)
        await self.answer(self.wording(trouble), status, trouble.headers)

    def abort(self) -> None:
        """Drop the connection without waiting for the client to take what is buffered."""
        drop: Callable[[], None] | None = self.scope.get("extensions", {}).get("freehold.abort")
        if drop is not None:
            drop()


class Endpoint:
    """An ASGI application around `handle`; starlette calls it as it is."""

    def __init__(self, name: str, handle: Callable[[Call], Awaitable[None]]) -> None:
        self.name, self.handle = name, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["freehold.call"]
        call.route = self.name
        await self.handle(call)


class Gate:
    """The outermost layer: guard, request id, and an answer to every exception."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        server: Server,
        wording: Callable[[str, Headers], Wording] = lambda *_: openai_error,
    ) -> None:
        """`wording` tells by path and headers how errors are worded: some come before any route is found."""
        self._app, self._server, self._wording = app, server, wording

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = scope["freehold.call"] = Call(self._server, scope, receive, send)
        call.wording = self._wording(scope["path"], call.headers)
        try:
            call.tenant = self._server.guard.check(scope["path"], call.headers)
            await self._app(scope, receive, send)
        except Gone:
            call.status = call.status or 499  # never sent: for the metrics
        except Exception as e:
            trouble = problem(e)
            if trouble.status == 500:
                _log.error("request %s failed", call.request_id.decode(), exc_info=e)
            if call.status:  # an answer had begun, and cannot be taken back
                call.abort()
            else:
                await call.refuse(trouble)
        finally:
            self._server.metrics.answered(call.route, call.status)
