"""One server of this home, from its checked options to its end: lock, sockets, models, announcements.

Knows the order of starting and who holds what; options are read elsewhere, the server is server/, engines are worker/.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.base import private
from freehold.base.config import Settings
from freehold.base.errors import AddressTaken, FreeholdError, ServerUnreachable, UsageError
from freehold.base.terminal import Ticking
from freehold.cli.serving.engines import EngineWish, deployments_of
from freehold.cli.serving.logs import logging_to, tell
from freehold.cli.serving.options import ServeOptions, open_browser, opening, owner_address, page_line
from freehold.cli.shared import held_or_fetched, named_adapter
from freehold.outgrow.finding import driven
from freehold.run.store import Store
from freehold.run.store.judging import Judgements
from freehold.run.store.naming import parted
from freehold.run.store.refs import parse_ref
from freehold.run.store.space import human

if TYPE_CHECKING:
    import socket

    from freehold.base.serving import ModelManager
    from freehold.cli.deploying.serving import StartedDeployments
    from freehold.cli.serving.hybrid import HybridStart
    from freehold.serve.http.serve import Doors, ServerSettings


def serve_models(
    settings: Settings,
    store: Store,
    models: Sequence[str],
    options: ServeOptions,
    deployments: StartedDeployments | None = None,
) -> int:
    """Serve `models` and `deployments` until a signal or `freehold stop`; return the exit status."""
    named_models = [parted(store, model) for model in models]
    models = [each.model for each in named_models]
    beside = tuple(f"{each.model}+{each.adapter}={each.path}" for each in named_models if each.path)
    with ExitStack() as held:
        line = held.enter_context(Ticking("starting the server"))
        from freehold.serve.http.core.sockets import bind_unix

        hybrid = _hybrid(settings, store, options.gateway, models)
        held.enter_context(_only_server(settings))
        tcp = bound(options.host, options.port)
        if options.ollama_port is not None:
            tcp += bound(options.host, options.ollama_port, "--ollama-port")
        for sock in tcp:
            held.enter_context(closing(sock))
        names = [named(store, model) for model in models]
        if names and options.computes != "freehold" and (options.computes != "auto" or driven()):
            wish = EngineWish(options.computes, options.engine.context, options.own)
            names, deployments = deployments_of(settings, store, names, wish)
        options = replace(
            options,
            engine=replace(options.engine, adapters=_adapters(store, names, (*beside, *options.adapters))),
        )
        unix = held.enter_context(closing(bind_unix(settings.socket)))
        held.callback(settings.socket.unlink, missing_ok=True)
        held.enter_context(logging_to(None, options.log_level, options.log_format))
        return _run(settings, store, names, options, tcp, unix, hybrid, deployments, line)


def _run(
    settings: Settings,
    store: Store,
    names: Sequence[str],
    options: ServeOptions,
    tcp: Sequence[socket.socket],
    unix: socket.socket,
    hybrid: HybridStart | None,
    deployments: StartedDeployments | None,
    line: Ticking,
) -> int:
    from freehold.outgrow.replicas.models import DeployedModels
    from freehold.run.store.judging import Judgements
    from freehold.serve.http import serve as doors
    from freehold.serve.http.system.deployments import DeploymentDesk
    from freehold.serve.worker.models import EngineModels

    judgements = Judgements()

    engines_open: list[DeployedModels] = []

    async def open_models() -> ModelManager:
        engines = EngineModels(store, options.engine, judgements=judgements)
        engines_open.append(DeployedModels(engines, settings.home))
        if (settings.home / "engines").exists():  # of an earlier server, which may have been killed
            engines_open[0].sweep()
        return engines_open[0] if hybrid is None else await hybrid.open(engines_open[0])

    def opened(doors: Doors) -> None:
        desk = DeploymentDesk(doors.server, engines_open[0], settings.home)
        doors.server.parts[DeploymentDesk] = desk
        announcer.opened(doors)
        if names:
            line.show(f"loading {', '.join(names)}")
        else:
            line.close()
        if deployments is not None:
            deployments.begin(desk, doors.url, announcer.arrived)

    announcer = Announcer(settings, store, names, options, judgements, hybrid, deployments, line)
    whole = doors.run(
        open_models,
        _server_settings(settings, options),
        tcp,
        unix,
        preload=names,
        store=store,
        opened=opened,
        loaded=announcer.loaded,
    )
    if not whole:
        tell("note: running answers were cut off")
    return 1 if announcer.useless else 0


def _server_settings(settings: Settings, options: ServeOptions) -> ServerSettings:
    """Return what a server takes of its options and of this home, whose owner's token is made where there is none."""
    from freehold.serve.http.core.auth import owner_token
    from freehold.serve.http.serve import ServerSettings

    return ServerSettings(
        keys=options.keys,
        owner=owner_token(settings.owner_token),
        insecure=options.insecure,
        hosts=options.hosts,
        origins=options.origins,
        media_hosts=options.media_hosts,
        tools=options.tools,
        tls=options.tls,
        accounts=settings.accounts,
        limits=options.limits,
        drain_s=options.drain_s,
        home=settings.home,
        chats_per_key=settings.chats_per_key,
        titles=settings.titles,
        console=options.console,
    )


def _hybrid(settings: Settings, store: Store, path: Path | None, models: Sequence[str]) -> HybridStart | None:
    """Read gateway.toml, where one is named; without one nothing of router/ is imported."""
    if path is None:
        return None
    from freehold.cli.serving.hybrid import HybridStart

    return HybridStart(settings, store, path, models)


def _adapters(store: Store, names: Sequence[str], spellings: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Group --adapter by model; one without a model belongs to the first."""
    out: dict[str, dict[str, Path]] = {}
    for each in spellings:
        model, name, path = named_adapter(store, each)
        if not (model or names):
            raise UsageError(f"--adapter {each} names no model", "give MODEL, or MODEL+NAME=PATH")
        beside = out.setdefault(named(store, model) if model else names[0], {})
        if name in beside:
            raise UsageError(f"--adapter names {name} twice")
        beside[name] = path
    return out


def named(store: Store, model: str) -> str:
    """Fetch the model if necessary; return the name for requests."""
    if parse_ref(model).kind == "path":
        return store.pull(model).name  # nothing is copied: the store records its path
    return held_or_fetched(store, model, speech=None).name


@contextmanager
def _only_server(settings: Settings) -> Iterator[None]:
    """Hold this home's lock; raise AddressTaken with the address of the running server."""
    from filelock import Timeout

    from freehold.cli.serving.attach import lock_of, pid_file

    lock = lock_of(settings)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AddressTaken(
            f"{settings.home} has a running server: {_whereabouts(settings)}",
            "freehold stop stops it; a second server needs another FREEHOLD_HOME and --port",
        ) from None
    try:
        with open(pid_file(settings), "w", encoding="utf-8", opener=private.opener) as file:
            file.write(str(os.getpid()))
        yield
    finally:
        pid_file(settings).unlink(missing_ok=True)
        lock.release()


def _whereabouts(settings: Settings) -> str:
    from freehold.cli.serving.attach import server_here

    try:
        with server_here(settings) as server:
            return f"{server.greeting.url} (pid {server.greeting.pid})"
    except ServerUnreachable as e:
        return e.message


# --- listening sockets ------------------------------------------------------------------------------
# Bound before anything is loaded; a port in use is an error that names its owner and a free one.

PORTS = 20  # ports searched for a free one after a port in use


def bound(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Bind the port. Raises AddressTaken for one in use, with its owner and a free port."""
    from freehold.serve.http.core.sockets import bind_tcp

    try:
        return bind_tcp(host, port)
    except UsageError as e:
        if not isinstance(e.__cause__, OSError) or e.__cause__.errno != errno.EADDRINUSE:
            raise
    free = next((p for p in range(port + 1, min(port + PORTS, 65535)) if _is_free(host, p)), 0)
    raise AddressTaken(f"port {port} is in use by {_owner(port)}", f"freehold serve {option} {free}")


def _is_free(host: str, port: int) -> bool:
    from freehold.serve.http.core.sockets import bind_tcp

    try:
        for sock in bind_tcp(host, port):
            sock.close()
    except UsageError:
        return False
    return True


def _owner(port: int) -> str:
    """Return the process that listens on `port`, as far as this user may see it."""
    import psutil

    try:
        for c in psutil.net_connections("tcp"):
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
                return f"{psutil.Process(c.pid).name()} (pid {c.pid})"
    except psutil.Error:
        pass
    return "another user's process"


# --- the messages of a server while it starts -------------------------------------------------------
# Loads its models and stops: lines on stderr, and JSON on stdout.


class Announcer:
    """Prints messages about the server on stderr, and a line of JSON on stdout for --json."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        names: Sequence[str],
        options: ServeOptions,
        judgements: Judgements,
        hybrid: HybridStart | None = None,
        deployments: StartedDeployments | None = None,
        line: Ticking | None = None,
    ) -> None:
        """`line` moves until all models are loaded."""
        self._settings, self._store, self._names, self._options = settings, store, names, options
        self._judgements, self._hybrid = judgements, hybrid
        self._deployments, self._line = deployments, line
        self._left, self.failed = len(names), 0
        self._parts = bool(names) + (deployments is not None)
        self._doors: Doors | None = None
        self._telling: asyncio.Task[None] | None = None  # kept, as a loop forgets tasks that nothing names,
        self._opening: asyncio.Task[None] | None = None  # as is this one

    def opened(self, doors: Doors) -> None:
        """Print how to reach the server, and how to stop it."""
        self._doors = doors
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, self._stop)
        keys = "API key required (Authorization: Bearer KEY)" if self._options.keys else "no API key required"
        tell(f"serving an OpenAI-compatible API at {doors.url}/v1, {keys}")
        if self._options.ollama_port is not None:
            tell(f"serving an Ollama-compatible API on port {self._options.ollama_port}")
        if self._options.console:
            self._tell_page(doors)
        for line in opening(self._options, doors.url):
            tell(line)
        if self._hybrid is not None:
            self._hybrid.opened(doors)
            for line in self._hybrid.lines(self._options.keys):
                tell(line)
        tell(f"owner's socket: {self._settings.socket} (freehold ps, stop, run)")
        tell("owner's token, for pull, create, copy and delete over HTTP: freehold keys owner")
        tell(f"pid {os.getpid()}: Ctrl-C or freehold stop stops it")
        self._telling = asyncio.get_running_loop().create_task(self._tell_models(doors.url))
        if self._names:
            tell(f"loading {', '.join(self._names)} ...")
        elif self._deployments is None:
            self._ready()

    def _tell_page(self, doors: Doors) -> None:
        """Print the page's link, and open it in the browser with --open."""
        from freehold.serve.http.console.login import Login

        login = doors.server.part(Login)
        if login is None:  # a server without a home keeps no sessions
            tell(f"the page: {doors.url}/")
            return
        tell(page_line(login, doors.url))
        if self._options.open_page:
            address = owner_address(doors.url, login.new_code())
            self._opening = asyncio.get_running_loop().create_task(self._open(address))

    async def _open(self, address: str) -> None:
        if not await asyncio.to_thread(open_browser, address):
            tell("warning: --open found no browser on this machine")

    @property
    def useless(self) -> bool:
        """Whether nothing of what the server was started for could be loaded or deployed."""
        more = self._deployments
        wanted = len(self._names) + (more.count if more is not None else 0)
        return 0 < wanted == self.failed + (more.failed if more is not None else 0)

    def arrived(self) -> None:
        """Count one of the two, models and deployments, as come to its end; a server that has neither stops."""
        assert self._doors is not None
        self._parts -= 1
        if self._parts > 0:
            return
        if self.useless:
            self._doors.stop(now=True)
        else:
            self._ready()

    async def _tell_models(self, url: str) -> None:
        """Print the models that requests may name, and why others are not served."""
        held, refused = await asyncio.to_thread(self._held)
        if self._deployments is None and (kept := _kept(self._settings)):
            tell(f"deployed before, not running: {', '.join(kept)} (freehold deploy starts them)")
        if not held and self._deployments is None:
            tell("no models yet: freehold pull qwen2.5-coder:0.5b fetches one")
        elif rest := [name for name in held if name not in self._names]:
            tell(f"loaded when a request names it: {', '.join(rest)}")
        for name, why in refused.items():
            tell(f"not served: {name}: {why}")
        routes = [] if self._hybrid is None else [*self._hybrid.live.current.routes]
        if names := routes or list(self._names) or held:
            chat = names[0] if routes else await asyncio.to_thread(self._first_chat, names)
            hears = not chat and names[0] in await asyncio.to_thread(self._speech_models)
            example = _example(url, chat or names[0], bool(self._options.keys), embeds=not chat, hears=hears)
            tell(f"try: {example}")

    def _first_chat(self, names: list[str]) -> str:
        """Return the first model that answers chats, or "" if none does."""
        from freehold.serve.http.ollama.models import Cards

        cards = Cards()
        for name in names:
            try:
                card = cards.of(self._store.show(name), self._settings.home, until=0.0)
            except FreeholdError:  # a name that tells nothing, such as a route's
                return name
            if not {"embedding", "transcription"} & {*card.capabilities}:
                return name
        return ""

    def _speech_models(self) -> set[str]:
        """Return the models that transcribe recordings."""
        from freehold.run.store.eyes import hears

        return {listed.name for listed in self._store.list() if hears(listed)}

    def _held(self) -> tuple[list[str], dict[str, str]]:
        """Return the models that the engine runs, and why it refuses the others."""
        judged = self._judgements.listed(self._store.list())
        refused = {m.name: why for m, why in judged if why}
        return [m.name for m, _ in judged if m.name not in refused], refused

    def loaded(self, name: str, error: FreeholdError | None) -> None:
        """Print the outcome of loading a model; a server that could load none of its models stops."""
        assert self._doors is not None
        self._left -= 1
        if error is not None:
            self.failed += 1
            tell(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        for model in self._doors.server.models.loaded():
            if model.name == name and model.info is not None:
                i = model.info
                tell(
                    f"loaded {name} {i.quantization} in {i.load_s:.2f} s: context {i.context:,} tokens, "
                    f"{human(i.memory_bytes)} reserved, {i.threads} threads"
                )
                for adapter in i.adapters:
                    tell(
                        f"adapter {name}+{adapter.name}: {adapter.modules} modules of rank "
                        f"{adapter.rank} at most, {human(adapter.memory_bytes)}"
                    )
                for note in i.notes:
                    tell(f"note: {name}: {note}")
        if self._left == 0:
            if self._line is not None:
                self._line.close()
            self.arrived()

    def _stop(self) -> None:
        """Stop after running answers, and print their number; the second time stop at once."""
        assert self._doors is not None
        server = self._doors.server
        jobs = sum(model.in_flight for model in server.models.loaded())
        under_way = max(jobs, len(server.calls))  # those of rented models are no engine's jobs
        if under_way and not self._doors.server.health.stopping:
            answers = "1 running answer has" if under_way == 1 else f"{under_way} running answers have"
            tell(f"stopping: {answers} {self._options.drain_s:g} s; Ctrl-C again stops at once")
        self._doors.stop()

    def _ready(self) -> None:
        if self._options.as_json:
            assert self._doors is not None
            loaded = [m.name for m in self._doors.server.models.loaded() if m.info]
            greeting = {"url": self._doors.url, "socket": str(self._settings.socket), "pid": os.getpid()}
            gateway = {} if self._hybrid is None else {"gateway": self._hybrid.as_json()}
            print(json.dumps({**greeting, "models": loaded, **gateway}), flush=True)


def _kept(settings: Settings) -> list[str]:
    """Return the deployments that a server before this one ran, and that were not stopped."""
    if not (settings.home / "deployments").is_dir():
        return []
    from freehold.outgrow.kept import kept

    return [each.name for each in kept(settings.home)[0]]


def _example(url: str, model: str, keyed: bool, *, embeds: bool = False, hears: bool = False) -> str:
    if hears:
        key = ' -H "Authorization: Bearer KEY"' if keyed else ""
        return f"curl {url}/v1/audio/transcriptions{key} -F model={model} -F file=@talk.wav"
    fields = {"input": ["Hi"]} if embeds else {"messages": [{"role": "user", "content": "Hi"}]}
    route, body = "embeddings" if embeds else "chat/completions", json.dumps({"model": model} | fields)
    key = ' -H "Authorization: Bearer KEY"' if keyed else ""
    return f"curl {url}/v1/{route} -H 'Content-Type: application/json'{key} -d '{body}'"
