"""One server of this home, from its checked options to its end: lock, sockets, models, announcements.

Knows the order of starting and who holds what; options are read elsewhere, the server is server/, engines are worker/.
Path: cli/serve.py -> serve_models -> ports.bound, sockets.bind_unix -> server.serve.run -> worker.models.EngineModels
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from freehold import private
from freehold.backends.finding import driven
from freehold.cli.serving.announce import Announcer
from freehold.cli.serving.engines import EngineWish, deployments_of
from freehold.cli.serving.lock import lock_of, pid_file
from freehold.cli.serving.logs import logging_to
from freehold.cli.serving.options import ServeOptions
from freehold.cli.serving.ports import bound
from freehold.cli.serving.telling import tell
from freehold.cli.shared import held_or_fetched, named_adapter
from freehold.config import Settings
from freehold.errors import AddressTaken, ServerUnreachable, UsageError
from freehold.store import Store
from freehold.store.naming import parted
from freehold.store.refs import parse_ref
from freehold.terminal import Ticking

if TYPE_CHECKING:
    import socket

    from freehold.cli.deploying.serving import StartedDeployments
    from freehold.cli.serving.hybrid import HybridStart
    from freehold.server.serve import Doors, ServerSettings
    from freehold.serving import ModelManager


def serve_models(
    settings: Settings,
    store: Store,
    models: Sequence[str],
    options: ServeOptions,
    deployments: StartedDeployments | None = None,
) -> int:
    """Serve `models` and `deployments` until a signal or `freehold stop`; return the exit status."""
    from freehold.server.core.sockets import bind_unix

    named_models = [parted(store, model) for model in models]
    models = [each.model for each in named_models]
    beside = tuple(f"{each.model}+{each.adapter}={each.path}" for each in named_models if each.path)
    hybrid = _hybrid(settings, store, options.gateway, models)
    with ExitStack() as held:
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
        line = held.enter_context(Ticking("starting the server"))
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
    from freehold.backends.replicas.models import DeployedModels
    from freehold.server import serve as doors
    from freehold.server.system.deployments import DeploymentDesk
    from freehold.store.judging import Judgements
    from freehold.worker.models import EngineModels

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
    from freehold.server.core.owner import owner_token
    from freehold.server.serve import ServerSettings

    return ServerSettings(
        keys=options.keys,
        owner=owner_token(settings.owner_token),
        insecure=options.insecure,
        hosts=options.hosts,
        origins=options.origins,
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
    return held_or_fetched(store, model).name


@contextmanager
def _only_server(settings: Settings) -> Iterator[None]:
    """Hold this home's lock; raise AddressTaken with the address of the running server."""
    from filelock import Timeout

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
