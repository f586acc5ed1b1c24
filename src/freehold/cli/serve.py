"""`freehold serve [MODEL ...]`: an HTTP server for models, with one engine process per model.

Knows options and the order of starting; the server is server/, the engines are worker/. One server per home holds its
lock while it runs; `ps`, `stop` and `run` reach it through its Unix socket.
Path: main -> serve -> serving/ports.py, bind_unix -> server.serve.run -> worker.models.EngineModels
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold import private
from freehold.cli.serving.announce import Announcer
from freehold.cli.serving.gatewayfile import gateway_option
from freehold.cli.serving.lock import lock_of, pid_file
from freehold.cli.serving.logs import LEVELS, logging_to
from freehold.cli.serving.options import ServeOptions, read_options
from freehold.cli.serving.ports import bound
from freehold.cli.serving.telling import tell
from freehold.cli.shared import (
    Seconds,
    draft_option,
    held_or_fetched,
    json_option,
    kv_option,
    named_adapter,
    offline_option,
    paging_option,
    speculate_option,
    with_offline,
)
from freehold.config import Settings, strange_variables
from freehold.errors import AddressTaken, ServerUnreachable, UsageError
from freehold.store import Store
from freehold.store.refs import parse_ref

if TYPE_CHECKING:
    import socket

    from freehold.cli.serving.hybrid import HybridStart
    from freehold.serving import ModelManager


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Listen on this address; beyond loopback a key is required. Default: 127.0.0.1.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Listen on this port; 0: a free one. Default: 11435."
)
@click.option(
    "--ollama-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Also listen on PORT; Ollama's clients expect 11434.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Require a key whose hash is in FILE. Default: keys.json of the data folder, if it exists.",
)
@click.option("--insecure", is_flag=True, help="Allow other machines without a key; prints what that opens.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Accept this name in the Host header of requests without a key; repeatable.",
)
@click.option(
    "--origin", multiple=True, metavar="URL", help="Allow requests from web pages of this origin; repeatable."
)
@click.option(
    "--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="Certificate for TLS, in PEM."
)
@click.option(
    "--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="Private key of the certificate."
)
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Context in tokens; default: the model's, if it fits into memory.",
)
@kv_option
@draft_option
@speculate_option
@paging_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[MODEL+]NAME=PATH",
    help="Serve a LoRA adapter of MODEL (default: the first) as MODEL+NAME; repeatable.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Number of compute threads.")
@click.option(
    "--keep-alive",
    type=Seconds(never=True),
    metavar="TIME",
    help="Unload a model after this idle time, or never. Default: 5m.",
)
@click.option("--max-models", type=click.IntRange(1), help="Most models in memory.")
@click.option(
    "--max-queued",
    type=click.IntRange(1),
    help="Most waiting requests per model; more are refused (429). Default: 512.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Most concurrent requests per key, or per address without keys (429). Default: 256.",
)
@click.option(
    "--target-itl",
    type=click.FloatRange(1),
    metavar="MS",
    help="Target inter-token latency of running answers during prefill, in milliseconds.",
)
@click.option(
    "--disk-cache/--no-disk-cache",
    default=True,
    help="Store the KV cache of long prompts in the data folder; it survives restarts.",
)
@gateway_option
@click.option(
    "--drain",
    type=Seconds(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="At shutdown, wait this long for running answers.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="Level of the log on stderr: info logs every request, warning only failures.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one object per line. Prompts and answers are never logged.",
)
@click.option(
    "--install-service",
    is_flag=True,
    help="Write a systemd user unit (macOS: launchd agent) with these options, and exit.",
)
@click.option("--force", is_flag=True, help="With --install-service: overwrite an existing unit.")
@json_option
@offline_option
@click.pass_context
def command(ctx: click.Context, models: tuple[str, ...], **given: Any) -> None:
    """Serve models over HTTP to clients of the OpenAI, Anthropic and Ollama APIs.

    Each MODEL (a name, a file, org/repo[:quant]) is fetched if necessary and loaded at start. Other models in the store
    are loaded when a request names them, and unloaded after --keep-alive or when memory is needed.

    SIGTERM or Ctrl-C finishes running answers, for at most --drain; a second signal stops at once. With --json, stdout
    gets one line once all models are loaded: {"url": ..., "models": [...], ...}.
    """
    settings = with_offline(ctx.obj, given.pop("offline"))
    for note in strange_variables(os.environ):
        tell(f"warning: {note}")
    force, installing = given.pop("force"), given.pop("install_service")
    options = read_options(settings, given)
    store = Store(settings)
    if installing:
        from freehold.cli.serving.service import install

        names = [_named(store, model) for model in models]
        _tell_variables(settings, options.gateway)
        ctx.exit(install(ctx, settings, names, options.drain_s, force=force, as_json=options.as_json))
    ctx.exit(_serve(settings, store, models, options))


def _serve(settings: Settings, store: Store, models: Sequence[str], options: ServeOptions) -> int:
    from freehold.server import serve as doors

    hybrid = _hybrid(settings, store, options.gateway, models)
    with ExitStack() as held:
        held.enter_context(_only_server(settings))
        tcp = bound(options.host, options.port)
        if options.ollama_port is not None:
            tcp += bound(options.host, options.ollama_port, "--ollama-port")
        for sock in tcp:
            held.enter_context(closing(sock))
        names = [_named(store, model) for model in models]
        options = replace(
            options, engine=replace(options.engine, adapters=_adapters(store, names, options.adapters))
        )
        unix = held.enter_context(closing(doors.bind_unix(settings.socket)))
        held.callback(settings.socket.unlink, missing_ok=True)
        held.enter_context(logging_to(None, options.log_level, options.log_format))
        return _run(settings, store, names, options, tcp, unix, hybrid)


def _run(
    settings: Settings,
    store: Store,
    names: Sequence[str],
    options: ServeOptions,
    tcp: Sequence[socket.socket],
    unix: socket.socket,
    hybrid: HybridStart | None,
) -> int:
    from freehold.server import serve as doors
    from freehold.server.core.owner import owner_token
    from freehold.store.judging import Judgements
    from freehold.worker.models import EngineModels

    judgements = Judgements()

    async def open_models() -> ModelManager:
        engines = EngineModels(store, options.engine, judgements=judgements)
        return engines if hybrid is None else await hybrid.open(engines)

    token = owner_token(settings.owner_token)
    announcer = Announcer(settings, store, names, options, judgements, hybrid)
    whole = doors.run(
        open_models,
        doors.ServerSettings(
            keys=options.keys,
            owner=token,
            insecure=options.insecure,
            hosts=options.hosts,
            origins=options.origins,
            tls=options.tls,
            accounts=settings.accounts,
            limits=options.limits,
            drain_s=options.drain_s,
            home=settings.home,
        ),
        tcp,
        unix,
        preload=names,
        store=store,
        opened=announcer.opened,
        loaded=announcer.loaded,
    )
    if not whole:
        tell("note: running answers were cut off")
    return 1 if names and announcer.failed == len(names) else 0


def _hybrid(settings: Settings, store: Store, path: Path | None, models: Sequence[str]) -> HybridStart | None:
    """Read gateway.toml, where one is named; without one nothing of router/ is imported."""
    if path is None:
        return None
    from freehold.cli.serving.hybrid import HybridStart

    return HybridStart(settings, store, path, models)


def _tell_variables(settings: Settings, path: Path | None) -> None:
    """Check a service's gateway.toml, and name the keys that only its environment can give it."""
    if path is None:
        return
    from freehold.cli.serving.hybrid import missing_variables

    if names := missing_variables(settings, path):
        tell(
            f"note: the service needs {', '.join(names)} in its environment; keys in the keyring need nothing"
        )


def _adapters(store: Store, names: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Group --adapter by model; one without a model belongs to the first."""
    out: dict[str, dict[str, Path]] = {}
    for each in given:
        model, name, path = named_adapter(each)
        if not (model or names):
            raise UsageError(f"--adapter {each} names no model", "give MODEL, or MODEL+NAME=PATH")
        beside = out.setdefault(_named(store, model) if model else names[0], {})
        if name in beside:
            raise UsageError(f"--adapter names {name} twice")
        beside[name] = path
    return out


def _named(store: Store, model: str) -> str:
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
    from freehold.cli.serving.attach import found

    try:
        with found(settings) as server:
            return f"{server.greeting.url} (pid {server.greeting.pid})"
    except ServerUnreachable as e:
        return e.message
