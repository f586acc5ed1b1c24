"""One request on its way through the server: its caller, its body, and how to answer.

Knows ASGI, the request id and the client's presence; knows no protocol's fields. A ServerCall is the part that needs no
connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from freehold.base.errors import EngineClosed, UsageError
from freehold.base.serving import ModelDirectory, ModelManager, Origin
from freehold.serve.http.core.accounts import Accounts
from freehold.serve.http.core.auth import CONSOLE, Audience, Guard
from freehold.serve.http.core.bodies import (
    Bodies,
    CallerTurns,
    Holding,
    LoopTurns,
    Uploads,
    body_pieces,
    json_body,
)
from freehold.serve.http.core.keys import Key
from freehold.serve.http.core.limits import Gone, ServerLimits, one_address
from freehold.serve.http.core.problems import Problem, Refused, Wording, forget_frames, openai_error, problem
from freehold.serve.http.core.scope import NamingDirectory, ScopedDirectory

if TYPE_CHECKING:
    from freehold.run.store import Store
    from freehold.serve.http.core.connections import Presence
    from freehold.serve.http.core.metrics import Health, Metrics


T = TypeVar("T", bound=msgspec.Struct)
P = TypeVar("P")
_log = logging.getLogger("freehold.serve.http")
RawHeaders = Sequence[tuple[bytes, bytes]]
_REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}")
_PIECE = 64 << 10  # bytes handed to a connection at once; it holds twice as many at most
# A request that holds more is worked on apart from the loop: of lists and objects, which cost the most, it has some
# 500, and reading them takes a millisecond.
APART = 128 << 10
CALLER_THREADS = 2  # of those that read and write the disk for all: there are six at least
JSON = (b"content-type", b"application/json")
LABEL_HEADER = b"x-freehold-label"  # names of labels, separated by commas

MODEL_HEADER = b"x-freehold-model"  # which model answered, where a request named a route


class ServerHandle(Protocol):
    """The running server, as requests may use it."""

    url: str

    def stop(self, *, now: bool = False) -> None: ...


@dataclass
class Server:
    """What all requests share."""

    models: ModelManager
    guard: Guard
    limits: ServerLimits
    metrics: Metrics
    health: Health
    keep_alive_s: float = 10.0  # an event stream is never silent for longer
    door: ServerHandle | None = None  # serve.py fills it in
    default_model: str = ""  # for the tokenizer's routes, which may come without a name
    store: Store | None = None  # the models on disk; without it routes of the store are absent
    console: bool = True  # the page at `/`, and the routes that it asks
    home: Path | None = None  # folder of chats and of what tools are configured; None: without them
    chats_per_key: int = 0  # bytes that the chats of one key may have; 0: what the disk has
    titles: bool = False  # whether models write titles for chats, while they have nothing else to do
    chores: int = 0  # downloads and the like that are in progress
    accounts: Accounts = field(default_factory=Accounts)
    started_at: float = field(default_factory=time.time)
    bodies: Bodies = field(default_factory=Bodies)
    uploads: Uploads = field(default_factory=Uploads)
    turns: CallerTurns = field(default_factory=lambda: CallerTurns(CALLER_THREADS))
    loop_turns: LoopTurns = field(default_factory=LoopTurns)
    requests: Counter[str] = field(default_factory=Counter)  # caller -> its requests in progress
    calls: set[ServerCall] = field(default_factory=set)  # those with a running job
    # What protocols keep, by its class; serve.py fills it, or they do at its first use.
    parts: dict[type, Any] = field(default_factory=dict)
    ending: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # what ends with the server
    watched: list[Callable[[], str]] = field(default_factory=list)  # each returns a trouble, or ""

    def part(self, kind: type[P]) -> P | None:
        """Return what a protocol keeps under this class; None where this server was started without it."""
        return self.parts.get(kind)

    def troubles(self) -> list[str]:
        """Return a sentence for each failure that leaves the answers right, such as a full disk."""
        sentences = (trouble() for trouble in (self.accounts.unsaved, *self.watched))
        return [sentence for sentence in sentences if sentence]


def labels_in(header: str) -> tuple[str, ...]:
    """Return the names in a label header; one without any has the name "", which no label has: it is refused."""
    return tuple(name for part in header.split(",") if (name := part.strip())) or ("",)


class ServerCall:
    """Work for one caller, with or without a connection: who asks, what it has computed, and how it is ended early.

    `route` is for the metrics.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.request_id = secrets.token_hex(12).encode()
        self.answer_id = secrets.token_hex(12)
        self.door = ""  # "batch" of a batch's line; otherwise Endpoint fills in the protocol's name
        self.key: Key | None = None  # Gate fills it in; None if none is needed
        self.owner = False  # Gate fills it in
        self.address = ""  # of the client, where it has one
        self.method, self.path, self.route = "", "", "other"
        # Where a protocol has a number of its own for one of problems.py.
        self.statuses: Mapping[int, int] = {}
        self.fields: Mapping[str, str] = {}  # a Job's field -> the name it has here, if any, for errors
        self.status = 0  # 0: nothing was sent
        self.code = ""  # of the error it was answered with
        self.answered_by = ""  # the model, where it is not the one that was asked for
        self.work = RequestWork()  # for the log; handlers fill it in
        self.complete = False
        self.ending: list[Any] = []  # long values that are freed when all is over
        self.started = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._ended: Exception | None = None

    @property
    def tenant(self) -> str:
        """The name of the request's key; "" without a key."""
        return self.key.name if self.key else ""

    @property
    def caller(self) -> str:
        """The group that shares limits: requests of one key, or of one address without keys."""
        if self.key is not None:
            return f"key {self.key.name}"
        return f"address {one_address(self.address)}" if self.address and not self.owner else "owner"

    @property
    def passed_s(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.started

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the request asks for, unchecked."""
        return ()

    @property
    def origin(self) -> Origin:
        """Where the request comes from, for routes and the ledger."""
        return Origin(self.request_id.decode(), self.answer_id, self.tenant, self.labels, self.door)

    @property
    def models(self) -> ModelDirectory:
        """The models this request may use."""
        models = self.server.models.asked_by(self.origin)
        if self.key is None:
            return NamingDirectory(models, self._turn)
        return ScopedDirectory(models, self.key, self.server.accounts, self._turn)

    def _turn(self) -> AbstractAsyncContextManager[None]:
        return self.server.turns.of(self.caller)

    def loading(self, model: str) -> tuple[int, int] | None:
        """Return (bytes done, bytes in all) of a model that is being loaded and that the caller may use."""
        return self.server.models.loading().get(model)

    async def while_here(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, but cancel it on cut() (EngineClosed), or once its client is gone."""
        self._task = asyncio.current_task()
        assert self._task is not None
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

    @property
    def asking(self) -> bool:
        """Whether it waits for a person, so that a drain has nothing to wait for."""
        return False

    def cut(self) -> None:
        """End the work at once: the server stops."""
        self._end(EngineClosed("the server is stopping", "try again in a moment"))

    def _end(self, why: Exception) -> None:
        if self._task is not None and self._ended is None:
            self._ended = why
            self._task.cancel()

    def problem(self, e: Exception) -> Problem:
        """Describe a failure for the client, and log it if it is ours."""
        trouble = problem(e, owner=self.server.guard.trusted)
        self.code = trouble.code or ""
        if isinstance(e, UsageError):
            trouble = replace(trouble, param=self.fields.get(e.field) or None)
        if trouble.status in (500, 507):
            _log.error("request %s failed", self.request_id.decode(), exc_info=e)
        else:
            forget_frames(e)
        return trouble


class HttpCall(ServerCall):
    """One request that came over HTTP."""

    def __init__(self, server: Server, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(server)
        self.scope, self._receive, self._send = scope, receive, send
        self.method, self.path = scope.get("method", "POST"), scope["path"]
        client = scope.get("client")
        self.address = client[0] if client else ""
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        own_id = self.headers.get(b"x-request-id", b"")
        if _REQUEST_ID.fullmatch(own_id):
            self.request_id = own_id
        self.wording: Wording = openai_error
        self.request: type[msgspec.Struct] | None = None  # what the route says its body is
        self.inherited: tuple[str, ...] = ()  # labels of stored answers that the request continues
        self._holding: Holding | None = None  # of the body, once it is on its way, and of a long answer
        self._presence: Presence | None = scope.get("extensions", {}).get("freehold.presence")
        self.taken_at = self.started  # when the connection took something last

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the request asks for, unchecked, from every header of the name, and those it inherits."""
        if LABEL_HEADER not in self.headers:
            return self.inherited
        headers = (value.decode("latin-1") for name, value in self.scope["headers"] if name == LABEL_HEADER)
        named = labels_in(",".join(headers))  # an empty header beside one that has some counts for nothing
        return tuple(dict.fromkeys((*self.inherited, *named)))

    def part(self, kind: type[P], status: int, message: str, code: str) -> P:
        """Return what a protocol keeps under this class; Refused where this server was started without it."""
        part = self.server.part(kind)
        if part is None:
            raise Refused(status, message, code=code)
        return part

    async def struct(self, kind: type[T], limits: ServerLimits | None = None) -> tuple[T, dict[str, Any]]:
        """Read the body; return it as `kind`, which the route must have declared, and as it came.

        `limits`: of this route, where the server's are not the ones.
        """
        assert kind is self.request, f"{self.route} declares {self.request}, and reads {kind}"
        limits = limits or self.server.limits
        self._holding = Holding(self.server.bodies, self.caller, limits)
        arrived = "freehold.arrived" in self.scope.get("extensions", {})
        read = await json_body(
            self._receive, self.headers, limits, self._holding, kind, self._gone, arrived=arrived
        )
        self.ending += read
        return read

    def hold(self, more: int) -> None:
        """Count `more` bytes of memory as the caller's until the request is over. Raises Refused (429, 503)."""
        limits = self.server.limits
        self._holding = self._holding or Holding(self.server.bodies, self.caller, limits)
        self._holding.set(self._holding.bytes + more, limits.small_bytes)

    async def apart(self, work: Callable[..., P], *args: Any, size: int = 0) -> P:
        """Run work on what the request holds: here if that is little, else in the bodies' thread, in the caller's turn.

        The loop continues meanwhile, so `work` must not change what other requests see. `size`: bytes that it makes,
        where those may be more than what came.
        """
        size = max(size, self._holding.bytes if self._holding else 0)
        if size <= APART:
            return work(*args)
        async with self.server.bodies.turn(self.caller, size) as pool:
            if self._gone():
                raise Gone
            return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    async def in_thread(self, work: Callable[..., P], *args: Any) -> P:
        """Run work that reads or writes the disk in one of the threads that all share, in the caller's turn.

        A caller that leaves meanwhile keeps its turn until the thread is free.
        """
        async with self._turn():
            working = asyncio.create_task(asyncio.to_thread(work, *args))
            try:
                return await asyncio.shield(working)
            finally:
                await asyncio.gather(working, return_exceptions=True)

    async def in_turn(self) -> None:
        """Continue in a turn of the loop that has time: many requests may have waited for one thing."""
        if not self.server.loop_turns.free(ending=True):
            await self.server.loop_turns.mine()

    def _gone(self) -> bool:
        """Return whether the client has left."""
        return self._presence is not None and self._presence.lost

    def pieces(self, most: int | None = None) -> AsyncIterator[bytes]:
        """Give the body as it comes, for an upload; `most`: bytes, where the usual limit is not the one."""
        if self.key is None and not self.owner:
            self.server.guard.check_upload(self.headers)
        return body_pieces(self._receive, self.headers, self.server.limits, most)

    async def while_here(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, but cancel it when the client closes its connection (Gone) or on cut() (EngineClosed)."""
        presence = self._presence
        if presence is not None and presence.lost:
            work.close()
            raise Gone
        watcher = None
        if presence is not None:
            presence.watch(self._left)
        else:  # another door than our connections
            watcher = asyncio.create_task(self._watch())
        try:
            await super().while_here(work)
        finally:
            if presence is not None:
                presence.watch(None)
            if watcher is not None:
                watcher.cancel()

    def admitted(self, *, used: bool = False) -> bool:
        """Return whether the caller may continue: its key was not revoked, nor has its session ended.

        `used`: something is sent to it, which keeps its session from being idle.
        """
        return self.server.guard.admits(self.headers, self.key, owner=self.owner, used=used)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        if not self.complete:
            self._end(Gone())

    async def head(self, status: int, headers: RawHeaders) -> None:
        """Send status and headers; the request id goes with every answer."""
        self.status = status
        names = (b"x-request-id", b"request-id")  # OpenAI's clients read the one, Anthropic's the other
        all_headers = [*headers, *((name, self.request_id) for name in names)]
        if self.answered_by:
            all_headers.append((MODEL_HEADER, self.answered_by.encode("ascii", "replace")))
        await self._write({"type": "http.response.start", "status": status, "headers": all_headers})

    async def body(self, data: bytes, *, more: bool = False) -> None:
        """Send a part of the body, or with `more` False the last one, no faster than the client takes it.

        Raises Gone for a client that takes nothing for `limits.write_s`.
        """
        for at in range(0, len(data) or 1, _PIECE):
            piece = data if len(data) <= _PIECE else data[at : at + _PIECE]
            last = not more and at + _PIECE >= len(data)
            self.complete = last
            await self._write({"type": "http.response.body", "body": piece, "more_body": not last})

    async def answer(
        self, value: object, status: int = 200, headers: RawHeaders = (), kind: bytes = b"application/json"
    ) -> None:
        """Send a whole answer; what is not bytes is encoded as JSON.

        A long one counts as a body of the caller's until it is taken, and is refused (429, 503) where there is no
        room for it: otherwise clients that take nothing would fill the server's memory.
        """
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        if len(data) > self.server.limits.small_bytes:
            self.hold(len(data))
        length = (b"content-length", b"%d" % len(data))
        await self.head(status, [(b"content-type", kind), length, *headers])
        await self.body(data)

    async def _write(self, message: MutableMapping[str, Any]) -> None:
        """Hand a message to the connection once it has room."""
        if self._presence is not None and not self._presence.full:  # a timer costs more than most messages
            await self._send(message)
        else:
            try:
                async with asyncio.timeout(self.server.limits.write_s):
                    await self._send(message)
            except TimeoutError:
                self.abort()
                raise Gone from None
        self.taken_at = time.monotonic()

    async def refuse(self, trouble: Problem) -> None:
        """Answer with an error, in the protocol's words."""
        trouble = replace(trouble, request_id=self.request_id.decode())
        status = self.statuses.get(trouble.status, trouble.status)
        await self.answer(self.wording(trouble), status, trouble.headers)

    def close(self) -> None:
        """Release the memory counted for the body and the answer, and have a long request freed apart."""
        if self._holding is not None:
            if self._holding.bytes > APART:
                self.server.bodies.free(self.ending)
            self._holding.close()
        self.ending = []

    def abort(self) -> None:
        """Drop the connection without waiting for the client to take what is buffered."""
        drop: Callable[[], None] | None = self.scope.get("extensions", {}).get("freehold.abort")
        if drop is not None:
            drop()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An ASGI application around `handle`; starlette calls it as it is. app.py describes it by its fields."""

    path: str
    handle: Callable[[HttpCall], Awaitable[None]]
    request: type[msgspec.Struct] | None = None  # of the body
    audience: Audience = "client"
    answer: tuple[str, ...] = ("application/json",)  # media types
    query: tuple[str, ...] = ()  # parameters after the `?`
    form: tuple[str, ...] = ()  # fields of a multipart body, the first one a file; `request` has the others
    reply: type[msgspec.Struct] | None = None  # what a whole answer in JSON looks like
    status: tuple[int, ...] = (200,)  # of successful answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: HttpCall = scope["freehold.call"]
        call.route, call.request = self.path, self.request
        call.door = call.door or protocol_of(self.path)
        call.server.guard.check_audience(self.audience, call.key, owner=call.owner)
        if call.key is not None and self.audience == "client" and _takes_part(scope):
            call.server.accounts.admit(call.key)
        await self.handle(call)


def _takes_part(scope: Scope) -> bool:
    """Return whether a request counts against its key's rate.

    A batch's lines, which have no method, wait for idle capacity as it is. What the page reads is its own matter.
    """
    method = scope.get("method")
    return method == "POST" or (method is not None and not scope["path"].startswith(CONSOLE))


def route(
    method: str,
    path: str,
    handle: Callable[[HttpCall], Awaitable[None]],
    request: type[msgspec.Struct] | None = None,
    *,
    audience: Audience = "client",
    answer: Sequence[str] = ("application/json",),
    query: Sequence[str] = (),
    form: Sequence[str] = (),
    reply: type[msgspec.Struct] | None = None,
    status: Sequence[int] = (200,),
) -> Route:
    """Return the route of `handle`, whose docstring says what it does; `request` is the struct it reads.

    The OpenAPI document has what is declared here, and the server enforces it.
    """
    endpoint = Endpoint(
        path, handle, request, audience, tuple(answer), tuple(query), tuple(form), reply, tuple(status)
    )
    return Route(path, endpoint, methods=[method])


def endpoint_of(route: Route) -> Endpoint:
    """Return what a route of ours was made with."""
    assert isinstance(route.endpoint, Endpoint)
    return route.endpoint


@dataclass(slots=True)
class RequestWork:
    """What a request had done: handlers fill it in as they learn of it. Seconds run from its arrival."""

    model: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    answers: int = 0
    first_s: float | None = None  # of the first token
    last_s: float = 0.0
    # Of a request whose pictures were computed: seconds of decoding them, of the tower, and of the prompt.
    picture_s: tuple[float, float, float] | None = None
    sound_s: tuple[float, float] | None = None  # of a recording: its seconds, and those of speech among them

    def came(self, tokens: int, at_s: float) -> None:
        """Note tokens of an answer."""
        if self.first_s is None:
            self.first_s = at_s
        self.answer_tokens += tokens
        self.last_s = at_s

    @property
    def tok_s(self) -> float | None:
        """Tokens a second after the first of each answer, all answers together; None where there is none to count."""
        later, spent = self.answer_tokens - max(self.answers, 1), self.last_s - (self.first_s or 0.0)
        return later / spent if later > 0 and spent > 0 else None


_PROTOCOLS = {"/api/": "ollama", "/v1/messages": "anthropic", "/v1/": "openai", "/console/": "console"}


@lru_cache(256)
def protocol_of(path: str) -> str:
    """Return which protocol a path belongs to, as the log and a request's origin name it; freehold for any other."""
    return next((name for start, name in _PROTOCOLS.items() if path.startswith(start)), "freehold")
