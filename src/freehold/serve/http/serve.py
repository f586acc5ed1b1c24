"""A running server from its sockets to its drain: uvicorn's loop, signals, shutdown.

Knows sockets, signals and uvicorn; knows no route. The network's sockets and the Unix socket get the same
application, behind a guard that checks and one that trusts the owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.garbage import OldObjects, visit_young_only
from freehold.base.platforms import open_files
from freehold.base.serving import ModelManager
from freehold.run.store import Store
from freehold.serve.http.app import endpoints, make_app, wording
from freehold.serve.http.batches.desk import Asker, Desk
from freehold.serve.http.console.choose import Questions
from freehold.serve.http.console.login import Login, PageSessions
from freehold.serve.http.console.runs.run import Runs
from freehold.serve.http.core.accounts import Accounts
from freehold.serve.http.core.auth import Guard
from freehold.serve.http.core.call import Server
from freehold.serve.http.core.connections import Connections, Guarded, full
from freehold.serve.http.core.keys import Ring, hashed
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.media import MediaHosts
from freehold.serve.http.core.metrics import Health, Metrics
from freehold.serve.http.core.problems import without_paths
from freehold.serve.http.core.sockets import Acceptor, Tls, url_of
from freehold.serve.http.ollama.models import drop_checks
from freehold.serve.http.openai.responses.containers import ToolContainers
from freehold.serve.http.openai.responses.store import Responses

LOOK_S = 1.0  # between looks at whether garbage is to be collected
STOP_S = 5.0  # from the end of the drain to the end of the process
OTHER_FILES = 256  # that a server opens besides connections: engines, models, uploads, the accounts
# That a thread which parses a body runs before the loop continues; Python's default is 0.005.
SWITCH_S = 0.0002
FEWEST = 8  # connections worth serving
_log = logging.getLogger("freehold.serve.http")
_FLUSH_S = 0.2  # for the last events of streams that are cut, before their connections go

Loaded = Callable[[str, FreeholdError | None], None]  # a name that was to be loaded, and what came of it


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server."""

    keys: Ring = field(default_factory=Ring)
    owner: str = field(default="", repr=False)  # the owner's token
    insecure: bool = False  # other machines reach it, and need no key
    hosts: tuple[str, ...] = ()
    tls: Tls | None = None
    accounts: Path | None = None  # folder of the keys' token counts; None: in memory only
    origins: tuple[str, ...] = ()
    limits: ServerLimits = ServerLimits()  # noqa: RUF009
    drain_s: float = 30.0
    keep_alive_s: float = 10.0  # of event streams; not of models
    home: Path | None = None  # folder of files, batches and sessions; None: without them
    chats_per_key: int = 0  # bytes that the chats of one key may have; 0: what the disk has
    titles: bool = False  # whether models write titles for chats, while they have nothing else to do
    console: bool = True  # the page at `/`, and the routes that it asks
    media_hosts: tuple[str, ...] = ()  # from which pictures may be fetched
    tools: tuple[str, ...] = ()  # that responses may run here


class Doors:
    """A running server. `stop` drains; a second `stop` ends at once."""

    def __init__(
        self,
        models: ModelManager,
        settings: ServerSettings,
        *,
        preload: Sequence[str] = (),
        store: Store | None = None,
    ) -> None:
        self.settings = settings
        self.url = ""
        self.drained = True  # False once an answer was cut off
        health = Health(models)
        health.preload = dict.fromkeys(preload, "loading")
        sessions = _sessions(settings)
        self.server = Server(
            models,
            _guard(settings, sessions),
            settings.limits,
            Metrics(models),
            health,
            settings.keep_alive_s,
            door=self,
            default_model=next(iter(preload), ""),
            store=store,
            console=settings.console,
            home=settings.home,
            chats_per_key=settings.chats_per_key,
            titles=settings.titles,
            accounts=Accounts(settings.accounts),
        )
        self._sessions = sessions
        if sessions is not None:
            self.server.parts[Login] = Login(sessions)
        self.server.parts[Responses] = Responses()
        if settings.media_hosts:
            self.server.parts[MediaHosts] = MediaHosts(settings.media_hosts)
        if settings.tools and settings.home is not None:
            containers = self.server.parts[ToolContainers] = ToolContainers(settings.home, settings.tools)
            self.server.ending.append(containers.aclose)
        if settings.home is not None:
            desk = self.server.parts[Desk] = Desk(settings.home)
            self.server.watched.append(desk.waiting)
            self.server.parts[Runs] = Runs()
        self.at_latest: Callable[[float], object] = lambda _: None  # ends the process in this many seconds
        self._halves: list[_Half] = []
        self._batches: asyncio.Task[None] | None = None
        self.server.metrics.watch(
            "freehold_accounts_unsaved_seconds",
            "Seconds since token counts of keys could be saved; 0 while they can.",
            lambda: self.server.accounts.failing_s,
        )

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
        keep = asyncio.create_task(self.server.accounts.keep())
        sessions = asyncio.create_task(self._sessions.keep()) if self._sessions else None
        if (desk := self.server.part(Desk)) is not None:
            self._batches = asyncio.create_task(desk.run(Asker(self.server, endpoints())))
        preload: asyncio.Task[None] | None = None
        garbage: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for half in self._halves:
                    group.create_task(half.serve(half.sockets))
                while not all(half.started for half in self._halves):
                    await asyncio.sleep(0.005)
                garbage = asyncio.create_task(self._collect_garbage(OldObjects()))
                names = tuple(self.server.health.preload)  # /ready may wait for deployments besides
                if opened is not None:
                    opened()
                preload = asyncio.create_task(self._preload(names, loaded))
        finally:
            for task in (watch, keep, sessions, preload, garbage, self._batches):
                if task is not None:
                    task.cancel()
            await self._ends()
            for end in self.server.ending:
                await end()
            await self.server.models.close(0.0)
            if (questions := self.server.part(Questions)) is not None:
                questions.close()
            self.server.accounts.close()
            if self._sessions is not None:
                self._sessions.close()
            self.server.bodies.close()
            drop_checks()

    async def _collect_garbage(self, old: OldObjects) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            old.look(quiet=self.server.bodies.held <= self.settings.limits.small_weight)

    async def _ends(self) -> None:
        """Wait for answers that no connection waits for: to their end, or until _cut ends them."""
        while self.server.calls and self.server.health.stopping:
            await asyncio.sleep(0.01)
        if (runs := self.server.part(Runs)) is not None:
            await runs.close()

    async def _preload(self, names: Sequence[str], loaded: Loaded | None) -> None:
        waiting = self.server.health.preload
        for name in names:
            error = None
            try:
                await self.server.models.use(name)
                del waiting[name]
            except FreeholdError as e:
                error, waiting[name] = e, without_paths(e.message)
            if loaded is not None:
                loaded(name, error)

    def stop(self, *, now: bool = False) -> None:
        """Accept no more connections and finish answers within drain_s; at once with `now` or the second time."""
        health, loop = self.server.health, asyncio.get_running_loop()
        again, health.stopping = health.stopping, True
        if self._batches is not None:  # they continue when the server is back
            self._batches.cancel()
        for half in self._halves:
            half.should_exit = True
        for call in list(self.server.calls):
            if call.asking:  # no text is cut off: what the model wrote before the question is whole
                call.cut()
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


def _sessions(settings: ServerSettings) -> PageSessions | None:
    if not settings.console:
        return None
    path = settings.home / "serve" / "logins.json" if settings.home is not None else None
    return PageSessions(path, settings.keys, _owner(settings), tls=settings.tls is not None)


def _guard(settings: ServerSettings, sessions: PageSessions | None) -> Guard:
    return Guard(
        settings.keys,
        settings.hosts,
        settings.origins,
        insecure=settings.insecure,
        owner=_owner(settings),
        tls=settings.tls is not None,
        sessions=sessions.find if sessions is not None else None,
    )


def _owner(settings: ServerSettings) -> str:
    return hashed(settings.owner.encode()) if settings.owner else ""


def run(
    open_models: Callable[[], Awaitable[ModelManager]],
    settings: ServerSettings,
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
    settings = replace(settings, limits=fitted(settings.limits))
    sys.setswitchinterval(SWITCH_S)
    visit_young_only()
    # Each line of garbage sent to us is a warning there.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

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
    """Let the kernel end this process, and so its engines, even if Python or native code hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def fitted(limits: ServerLimits) -> ServerLimits:
    """Return `limits` with no more connections than there can be open files, after asking for more of those.

    Raises UsageError where there is room for next to none.
    """
    import psutil

    used, wanted = psutil.Process().num_fds(), limits.connections + limits.held_back + limits.waiting
    soft = open_files(wanted + used + OTHER_FILES)
    room = soft - used - min(OTHER_FILES, soft // 4)
    if room >= wanted:
        return limits
    if room < FEWEST:
        message = f"this process may open {soft:,} files, and {used} are open: too few to serve"
        raise UsageError(message, "ulimit -n 1024")
    held_back, waiting = min(limits.held_back, room // 4), min(limits.waiting, room // 4)
    most = room - held_back - waiting
    _log.warning("%d connections at most: this process may open %d files (ulimit -n)", most, soft)
    return replace(limits, connections=most, held_back=held_back, waiting=waiting)


class _Half(uvicorn.Server):
    """uvicorn for one application, leaving the signals alone."""

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, sockets: Sequence[socket.socket], tls: Tls | None = None
    ) -> None:
        limits = settings.limits
        kept = {"door": Connections(limits), "wording": staticmethod(wording)}
        protocol = type("Kept", (Guarded,), kept)
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
        self.sockets, self._limits = list(sockets), limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, but through Acceptors."""
        await self.lifespan.startup()
        # As far as uvicorn knows them: they close, and wait until they are.
        self.servers = cast(
            list[Any],
            [
                Acceptor(each, self._protocol, self._limits, self.config.ssl, full(self._limits))
                for each in sockets or ()
            ],
        )
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield
