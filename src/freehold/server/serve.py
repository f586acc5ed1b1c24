"""Opens the doors, keeps them, and closes them in order: sockets, uvicorn's loop, signals, drain.

Knows sockets, signals and uvicorn; knows no route. The network's sockets and the Unix socket get the same
application, behind a guard that asks and one that trusts.
Path: cli/serve -> bind_tcp, bind_unix -> run -> Doors.open -> app.py
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from freehold.errors import FreeholdError, UsageError
from freehold.server.accounts import Accounts
from freehold.server.app import endpoints, make_app
from freehold.server.auth import Guard, host_name
from freehold.server.call import Server
from freehold.server.contract import Models
from freehold.server.health import Health
from freehold.server.keys import Ring, hashed
from freehold.server.limits import Limits
from freehold.server.metrics import Metrics
from freehold.server.openai.batch.asking import Asker
from freehold.server.openai.batch.desk import Desk
from freehold.server.problems import Refused, openai_error, problem, without_paths
from freehold.server.tls import Tls
from freehold.store import Store

STOP_S = 5.0  # from the end of the drain to the end of the process
_FLUSH_S = 0.2  # for the last events of streams that are cut, before their connections go

Loaded = Callable[[str, FreeholdError | None], None]  # a name that was to be loaded, and what came of it


@dataclass(frozen=True)
class Settings:
    """How a server behaves, whatever it serves."""

    keys: Ring = field(default_factory=Ring)
    owner: str = field(default="", repr=False)  # the owner's token
    insecure: bool = False  # other machines reach it, and need no key
    hosts: tuple[str, ...] = ()
    tls: Tls | None = None
    accounts: Path | None = None  # where what keys spend is kept; None: with the process
    origins: tuple[str, ...] = ()
    limits: Limits = Limits()  # noqa: RUF009
    drain_s: float = 30.0
    keep_alive_s: float = 10.0  # of event streams; not of models
    home: Path | None = None  # where files and batches lie; None: there are none


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Bind `host` (a name may mean several addresses); port 0 takes a free one. Raises UsageError."""
    name = host_name(host)
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as e:
        raise UsageError(f"{name} is no address of this machine: {e.strerror}") from e
    out: list[socket.socket] = []
    for family, kind, proto, _, address in dict.fromkeys(found):
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and out:  # the same free port for every address
                address = (address[0], out[0].getsockname()[1], *address[2:])
            sock.bind(address)
        except OSError as e:
            sock.close()
            for each in out:
                each.close()
            raise UsageError(f"{name}:{port} cannot be bound: {e.strerror}", "choose another --port") from e
        out.append(sock)
    return out


def bind_unix(path: Path) -> socket.socket:
    """Bind a socket in a folder that only this user enters. Raises UsageError if another server listens there."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    found = folder.stat()
    if stat.S_IMODE(found.st_mode) != 0o700 or found.st_uid != os.geteuid():
        raise UsageError(f"{folder} is open to others", "it must belong to you alone: chmod 700")
    if _answers(path):
        raise UsageError(f"a server listens at {path} already", "freehold stop ends it")
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except OSError as e:
        sock.close()
        raise UsageError(f"{path} cannot be bound: {e}", "a socket's path has at most 107 bytes") from e
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """Return the URL that a bound TCP socket is reached at from this machine."""
    address: tuple[str, int] = sock.getsockname()[:2]
    host, port = address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or host
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Doors:
    """A running server. `stop` drains; a second `stop` ends at once."""

    def __init__(
        self, models: Models, settings: Settings, *, preload: Sequence[str] = (), store: Store | None = None
    ) -> None:
        self.settings = settings
        self.url = ""
        self.drained = True  # False once an answer was cut off
        health = Health(models)
        health.preload = dict.fromkeys(preload, "loading")
        guard = Guard(
            settings.keys,
            settings.hosts,
            settings.origins,
            insecure=settings.insecure,
            owner=hashed(settings.owner.encode()) if settings.owner else "",
        )
        self.server = Server(
            models,
            guard,
            settings.limits,
            Metrics(models),
            health,
            settings.keep_alive_s,
            door=self,
            default_model=next(iter(preload), ""),
            desk=None if settings.home is None else Desk(settings.home),
            store=store,
            accounts=Accounts(settings.accounts),
        )
        self.at_latest: Callable[[float], object] = lambda _: None  # ends the process in so many seconds
        self._halves: list[_Half] = []
        self._batches: asyncio.Task[None] | None = None

    async def open(
        self,
        tcp: Sequence[socket.socket],
        unix: socket.socket | None = None,
        opened: Callable[[], None] | None = None,
        loaded: Loaded | None = None,
    ) -> None:
        """Serve on bound sockets until stopped; `opened` is called once connections are taken."""
        tls = self.settings.tls
        self.url = url_of(tcp[0], "https" if tls else "http") if tcp else ""
        if tcp:
            self._halves.append(_Half(make_app(self.server), self.settings, tcp, tls))
        if unix is not None:
            trusted = replace(self.server, guard=replace(self.server.guard, trusted=True))
            self._halves.append(_Half(make_app(trusted), self.settings, [unix]))
        watch = asyncio.create_task(self.server.health.watch())
        if self.server.desk is not None:
            self._batches = asyncio.create_task(self.server.desk.run(Asker(self.server, endpoints())))
        preload: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for half in self._halves:
                    group.create_task(half.serve(half.sockets))
                while not all(half.started for half in self._halves):
                    await asyncio.sleep(0.005)
                if opened is not None:
                    opened()
                preload = asyncio.create_task(self._preload(loaded))
        finally:
            for task in (watch, preload, self._batches):
                if task is not None:
                    task.cancel()
            await self.server.models.close(0.0)
            self.server.accounts.close()
            self.server.bodies.close()

    async def _preload(self, loaded: Loaded | None) -> None:
        waiting = self.server.health.preload
        for name in list(waiting):
            error = None
            try:
                await self.server.models.use(name)
                del waiting[name]
            except FreeholdError as e:
                error, waiting[name] = e, without_paths(e.message)
            if loaded is not None:
                loaded(name, error)

    def stop(self, *, now: bool = False) -> None:
        """Take no more connections, let answers end up to drain_s; at once with `now` or the second time."""
        health, loop = self.server.health, asyncio.get_running_loop()
        again, health.stopping = health.stopping, True
        if self._batches is not None:  # they go on when the server is back
            self._batches.cancel()
        for half in self._halves:
            half.should_exit = True
        self.at_latest(STOP_S if now or again else self.settings.drain_s + STOP_S)
        if now or again:
            self._cut()
        else:
            loop.call_later(self.settings.drain_s, self._cut)

    def _cut(self) -> None:
        self.drained = self.drained and not self.server.calls
        for call in list(self.server.calls):
            call.cut()
        asyncio.get_running_loop().call_later(_FLUSH_S, self._drop)

    def _drop(self) -> None:
        for half in self._halves:
            half.force_exit = True
            for connection in list(half.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]


def run(
    open_models: Callable[[], Awaitable[Models]],
    settings: Settings,
    tcp: Sequence[socket.socket],
    unix: socket.socket | None = None,
    *,
    preload: Sequence[str] = (),
    store: Store | None = None,
    opened: Callable[[Doors], None] | None = None,
    loaded: Loaded | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT; return whether every answer came to its end.

    `open_models` runs inside the loop. `preload`: names to load once the doors are open; `loaded` hears of each.
    """
    _allow_many_files(settings.limits.connections)
    logging.getLogger("uvicorn.error").setLevel(
        logging.ERROR
    )  # each line of garbage sent to us is a warning there

    async def main() -> bool:
        doors = Doors(await open_models(), settings, preload=preload, store=store)
        doors.at_latest = _end_by_alarm
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, doors.stop)
        await doors.open(tcp, unix, lambda: opened(doors) if opened else None, loaded)
        return doors.drained

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _end_by_alarm(seconds: float) -> None:
    """Have the kernel end this process, and so its engines: nothing that hangs, in Python or below, can stop that."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _allow_many_files(connections: int) -> None:
    """Raise the soft limit of open files to what the connections need, within the hard one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        top = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))


class _Half(uvicorn.Server):
    """uvicorn for one application, leaving the signals alone."""

    def __init__(
        self, app: ASGIApp, settings: Settings, sockets: Sequence[socket.socket], tls: Tls | None = None
    ) -> None:
        limits = settings.limits
        protocol = type("Guarded", (_Guarded,), {"limits": limits})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                ssl_certfile=tls.cert if tls else None,
                ssl_keyfile=tls.key if tls else None,
                timeout_keep_alive=round(limits.idle_s),
                timeout_graceful_shutdown=round(settings.drain_s) + 5,
            )
        )
        self.sockets = list(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Guarded(HttpToolsProtocol):
    """A connection whose headers come in time and in bounds, one of not too many."""

    limits: Limits
    _heading = True  # the headers of a request are not whole yet
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._turn_away(_too_many(self.limits.connections))
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._heading:
            self._disarm()
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.limits.header_bytes and not self.transport.is_closing():
            self._turn_away(_too_long(self.limits.header_bytes))
        elif self._timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"freehold.abort": self.transport.abort}  # type: ignore[dict-item]
        self._heading, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._heading = False
        super().on_headers_complete()

    def _turn_away(self, e: Refused) -> None:
        """Answer before there is a request, whose path would tell a protocol: in OpenAI's words."""
        self.transport.write(_answer(e))
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_s, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.abort()


def _too_many(most: int) -> Refused:
    return Refused(
        503,
        f"too many connections are open; the limit is {most:,}: ask again in a moment, over fewer of them",
        code="connections_too_many",
        headers=((b"retry-after", b"1"),),
    )


def _too_long(most: int) -> Refused:
    return Refused(
        431,
        f"the headers are longer than {most:,} bytes; send fewer or shorter ones",
        code="headers_too_large",
    )


def _answer(e: Refused) -> bytes:
    body = openai_error(problem(e))
    headers = (
        (b"connection", b"close"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *e.headers,
    )
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (e.status, HTTPStatus(e.status).phrase.encode(), lines, body)
