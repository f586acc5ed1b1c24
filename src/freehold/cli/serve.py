"""`freehold serve [MODEL ...]`: an OpenAI-compatible server, one process per model behind it.

Knows options, ports and what to tell the user; the server is server/, the engines are worker/. One server per
home holds its lock for as long as it lives; `ps`, `stop` and `run` reach it through its Unix socket.
Path: main -> serve -> bind_tcp, bind_unix -> server.serve.run -> worker.models.Models
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold import private
from freehold.cli.serving.logs import LEVELS, Form, is_logging, logging_to
from freehold.cli.serving.opening import names_here, opening
from freehold.cli.shared import (
    Seconds,
    draft_option,
    held_or_fetched,
    json_option,
    kv_option,
    named_adapter,
    offline_option,
    speculate_option,
    with_offline,
)
from freehold.config import Settings, strange_variables
from freehold.errors import AddressTaken, FreeholdError, ServerUnreachable, UsageError
from freehold.store import Store
from freehold.store.refs import parse_ref
from freehold.store.space import human

if TYPE_CHECKING:
    import socket

    from freehold.server.core.keys import Key, Ring
    from freehold.server.core.limits import Limits
    from freehold.server.core.tls import Tls
    from freehold.server.serve import Doors
    from freehold.worker.models import EngineOptions

_talk = logging.getLogger("freehold.serve")
PORTS = 20  # how far a free port is looked for beside a taken one


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--host", metavar="ADDRESS", help="Listen here; what others reach needs a key. Default: 127.0.0.1."
)
@click.option("--port", type=click.IntRange(0, 65535), help="Default: 11435; 0 takes a free one.")
@click.option(
    "--ollama-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Listen there too: 11434 is where Ollama's clients look.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ask for one of the keys whose hashes are in FILE. Default: keys.json of the data folder, once it is there.",
)
@click.option("--insecure", is_flag=True, help="Let other machines ask without a key; says what that opens.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Without a key: a name this server may be called by, besides this machine's own; repeatable.",
)
@click.option("--origin", multiple=True, metavar="URL", help="Let web pages of this origin ask; repeatable.")
@click.option(
    "--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="Speak TLS: the certificate, in PEM."
)
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="And its private key.")
@click.option(
    "--context", type=click.IntRange(1), help="Room for this many tokens; default: the model's, if it fits."
)
@kv_option
@draft_option
@speculate_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[MODEL+]NAME=PATH",
    help="Serve a LoRA adapter beside MODEL (the first one), as MODEL+NAME; repeatable.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Compute with this many threads.")
@click.option(
    "--keep-alive",
    type=Seconds(never=True),
    metavar="TIME",
    help="Unload a model that is idle for so long, or never. Default: 5m.",
)
@click.option("--max-models", type=click.IntRange(1), help="Hold at most so many models at once.")
@click.option(
    "--max-queued", type=click.IntRange(1), help="Refuse what comes when so many wait (429). Default: 512."
)
@click.option(
    "--max-requests",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Requests under way of one key, or one address without keys (429). Default: 256.",
)
@click.option(
    "--target-itl",
    type=click.FloatRange(1),
    metavar="MS",
    help="Keep running answers at this many milliseconds a token while prompts are read.",
)
@click.option(
    "--disk-cache/--no-disk-cache",
    default=True,
    help="Keep what long prompts computed in the data folder, for the next server too.",
)
@click.option(
    "--drain",
    type=Seconds(),
    default="30s",
    show_default=True,
    metavar="TIME",
    help="At the end, wait so long for answers under way.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    help="Of the log on stderr: info has a line a request, warning none but of failures.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: an object a line. Never a word of a prompt or an answer.",
)
@click.option(
    "--install-service", is_flag=True, help="Write a systemd unit of yours that does this, and stop."
)
@click.option("--force", is_flag=True, help="With --install-service: overwrite another unit of that name.")
@json_option
@offline_option
@click.pass_context
def command(ctx: click.Context, models: tuple[str, ...], **given: Any) -> None:
    """Serve models over HTTP, to every client that speaks OpenAI's API.

    Each MODEL (a name, a file, org/repo[:quant]) is fetched if it is not here, and loaded at once; any other that
    is here is loaded when a request names it, and unloaded when it was idle for --keep-alive or memory is needed.

    SIGTERM or Ctrl-C lets answers under way come to their end, at most for --drain; a second one ends at once.
    With --json, stdout gets one line when all is loaded: {"url": ..., "models": [...], ...}.
    """
    settings = with_offline(ctx.obj, given.pop("offline"))
    for note in strange_variables(os.environ):
        tell(f"warning: {note}")
    force, installing = given.pop("force"), given.pop("install_service")
    asked = _asked(settings, given)
    store = Store(settings)
    if installing:
        from freehold.cli.serving.service import install

        names = [_named(store, model) for model in models]
        ctx.exit(install(ctx, settings, names, asked.drain_s, force=force, as_json=asked.as_json))
    ctx.exit(_serve(settings, store, models, asked))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line and the settings ask for, checked."""

    host: str
    port: int
    ollama_port: int | None
    keys: Ring
    insecure: bool
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    tls: Tls | None
    options: EngineOptions
    limits: Limits
    drain_s: float
    as_json: bool
    adapters: tuple[str, ...]
    log_level: str
    log_format: Form


def _asked(settings: Settings, given: dict[str, Any]) -> Asked:
    from freehold.server.core.auth import check_bind
    from freehold.server.core.limits import Limits
    from freehold.server.core.tls import checked
    from freehold.worker.models import EngineOptions

    host = given["host"] or settings.host
    keys = ring(settings, given["key_file"], insecure=given["insecure"])
    check_bind(host, keys, insecure=given["insecure"])
    tls = checked(given["tls_cert"], given["tls_key"])
    kept = Seconds(never=True).convert(settings.keep_alive, None, None)
    engine = {"max_queued": given["max_queued"]}
    if given["target_itl"] is not None:
        engine["target_itl_s"] = given["target_itl"] / 1000
    if given["draft"] and not given["speculate"]:
        raise UsageError("--draft guesses, and --no-speculation forbids it", "give one of them")
    options = EngineOptions(
        context=given["context"],
        kv_type=given["kv_type"],
        threads=given["threads"],
        speculate=given["speculate"],
        draft=given["draft"],
        disk=settings.home / "kv" if given["disk_cache"] else None,
        max_models=given["max_models"],
        keep_alive_s=kept if given["keep_alive"] is None else given["keep_alive"],
        engine={name: value for name, value in engine.items() if value is not None},
    )
    port = settings.port if given["port"] is None else given["port"]
    hosts = (*names_here(), *given["allow_host"]) if given["insecure"] else given["allow_host"]
    return Asked(
        host,
        port,
        given["ollama_port"],
        keys,
        given["insecure"],
        tuple(name.lower() for name in hosts),
        given["origin"],
        tls,
        options,
        Limits() if given["max_requests"] is None else Limits(caller_requests=given["max_requests"]),
        given["drain"],
        given["as_json"],
        given["adapters"],
        given["log_level"],
        given["log_format"],
    )


def ring(settings: Settings, file: Path | None, *, insecure: bool) -> Ring:
    """Return the keys in force: those of `file`, or of this home's once there are any, and the environment's.

    Once there is a key, requests need one for as long as the server runs. Raises UsageError for a named file without
    keys, and for this home's if it is empty.
    """
    from freehold.server.core.keys import KeyFile, Ring

    named = bool(file or settings.key_file)
    kept = KeyFile(file.expanduser() if file else settings.keys)
    if named and not kept.read():
        raise UsageError(f"{kept.path} holds no key", f"freehold keys add NAME --file {kept.path}")
    own = _from_environment(settings.api_key)
    if kept.emptied() and not own and not insecure:
        raise UsageError(
            f"{kept.path} has held keys and holds none: without one every program here could ask",
            f"freehold keys add NAME makes one; rm {kept.path} serves without keys again",
        )
    return Ring(own, kept, needed=named)


def _from_environment(secret: str) -> list[Key]:
    """Return the key in FREEHOLD_API_KEY; a value that is none may be meant for a client, and is named."""
    from freehold.server.core.keys import key_of

    try:
        return [key_of("environment", secret)] if secret else []
    except UsageError as e:
        tell(f"warning: FREEHOLD_API_KEY is not a key of this server: {e.message}")
        return []


def _serve(settings: Settings, store: Store, models: Sequence[str], asked: Asked) -> int:
    from freehold.server import serve as doors

    with ExitStack() as held:
        held.enter_context(_only_server(settings))
        tcp = _bound(asked.host, asked.port)
        if asked.ollama_port is not None:
            tcp += _bound(asked.host, asked.ollama_port, "--ollama-port")
        for sock in tcp:
            held.enter_context(closing(sock))
        names = [_named(store, model) for model in models]
        asked = replace(
            asked, options=replace(asked.options, adapters=_adapters(store, names, asked.adapters))
        )
        unix = held.enter_context(closing(doors.bind_unix(settings.socket)))
        held.callback(settings.socket.unlink, missing_ok=True)
        held.enter_context(logging_to(None, asked.log_level, asked.log_format))
        return _run(settings, store, names, asked, tcp, unix)


def _run(
    settings: Settings,
    store: Store,
    names: Sequence[str],
    asked: Asked,
    tcp: Sequence[socket.socket],
    unix: socket.socket,
) -> int:
    from freehold.server import serve as doors
    from freehold.server.core.owner import owner_token
    from freehold.worker.models import EngineModels

    async def open_models() -> EngineModels:
        return EngineModels(store, asked.options)

    token = owner_token(settings.owner_token)
    teller = Teller(settings, store, names, asked)
    whole = doors.run(
        open_models,
        doors.Settings(
            keys=asked.keys,
            owner=token,
            insecure=asked.insecure,
            hosts=asked.hosts,
            origins=asked.origins,
            tls=asked.tls,
            accounts=settings.accounts,
            limits=asked.limits,
            drain_s=asked.drain_s,
            home=settings.home,
        ),
        tcp,
        unix,
        preload=names,
        store=store,
        opened=teller.opened,
        loaded=teller.loaded,
    )
    if not whole:
        tell("note: answers were cut off")
    return 1 if names and teller.failed == len(names) else 0


class Teller:
    """Says what the user should know, as it comes: on stderr, and as JSON on stdout if asked."""

    def __init__(self, settings: Settings, store: Store, names: Sequence[str], asked: Asked) -> None:
        self._settings, self._store, self._names, self._asked = settings, store, names, asked
        self._left, self.failed = len(names), 0
        self._doors: Doors | None = None

    def opened(self, doors: Doors) -> None:
        """Tell how to reach the server, and how to end it."""
        self._doors = doors
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, self._stop)
        keys = "with a key (Authorization: Bearer KEY)" if self._asked.keys else "without a key"
        tell(f"serving OpenAI's API at {doors.url}/v1, {keys}")
        if self._asked.ollama_port is not None:
            tell(f"serving Ollama's at port {self._asked.ollama_port} too")
        for line in opening(self._asked, doors.url):
            tell(line)
        tell(f"owner's socket: {self._settings.socket} (freehold ps, stop, run)")
        tell("owner's token, for pull, create, copy and delete over HTTP: freehold keys owner")
        tell(f"pid {os.getpid()}: Ctrl-C or freehold stop ends it")
        held = [m.name for m in self._store.list() if m.state in ("ready", "changed")]
        if not held:
            tell("no models here yet: freehold pull qwen2.5-coder:0.5b brings the first one")
        elif rest := [name for name in held if name not in self._names]:
            tell(f"loaded when a request names it: {', '.join(rest)}")
        if held:
            tell(f"try: {_example(doors.url, (self._names or held)[0], keyed=bool(self._asked.keys))}")
        if self._names:
            tell(f"loading {', '.join(self._names)} ...")
        else:
            self._ready()

    def loaded(self, name: str, error: FreeholdError | None) -> None:
        """Tell what came of a model that was to be loaded; a server with none of those it was given ends."""
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
                    f"{human(i.memory_bytes)}, {i.threads} threads"
                )
                for adapter in i.adapters:
                    tell(
                        f"beside it: {name}+{adapter.name}, {adapter.modules} modules of rank "
                        f"{adapter.rank} at most, {human(adapter.memory_bytes)}"
                    )
                for note in i.notes:
                    tell(f"note: {name}: {note}")
        if self._left == 0 and self.failed == len(self._names):
            self._doors.stop(now=True)
        elif self._left == 0:
            self._ready()

    def _stop(self) -> None:
        """Begin the end, and say what it waits for; the second time it waits no longer."""
        assert self._doors is not None
        under_way = sum(model.in_flight for model in self._doors.server.models.loaded())
        if under_way and not self._doors.server.health.stopping:
            tell(f"ending: {under_way} under way get {self._asked.drain_s:g} s; once more ends at once")
        self._doors.stop()

    def _ready(self) -> None:
        if self._asked.as_json:
            assert self._doors is not None
            loaded = [m.name for m in self._doors.server.models.loaded() if m.info]
            said = {"url": self._doors.url, "socket": str(self._settings.socket), "pid": os.getpid()}
            print(json.dumps({**said, "models": loaded}), flush=True)


def tell(text: str) -> None:
    """Say something on stderr: in the log, once there is one."""
    if not is_logging():
        return print(text, file=sys.stderr, flush=True)
    level, _, rest = text.partition(": ")
    known = {"error": logging.ERROR, "warning": logging.WARNING}
    return _talk.log(known.get(level, logging.INFO), "%s", rest if level in known else text)


def _example(url: str, model: str, *, keyed: bool) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
    key = ' -H "Authorization: Bearer KEY"' if keyed else ""
    return f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"


def _adapters(store: Store, names: Sequence[str], given: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Sort --adapter by the models they lie beside; one that names none lies beside the first."""
    out: dict[str, dict[str, Path]] = {}
    for each in given:
        model, name, path = named_adapter(each)
        if not (model or names):
            raise UsageError(f"--adapter {each} lies beside no model", "name one: MODEL, or MODEL+NAME=PATH")
        beside = out.setdefault(_named(store, model) if model else names[0], {})
        if name in beside:
            raise UsageError(f"--adapter names {name} twice")
        beside[name] = path
    return out


def _named(store: Store, model: str) -> str:
    """Have the model here, fetched if need be, under a name that requests can use."""
    if parse_ref(model).kind == "path":
        return store.pull(model).name  # nothing is copied: the store notes where it lies
    return held_or_fetched(store, model).name


@contextmanager
def _only_server(settings: Settings) -> Iterator[None]:
    """Hold this home's lock; raise AddressTaken with the address of whoever holds it."""
    from filelock import Timeout

    from freehold.cli.serving.attach import lock_of, pid_file

    lock = lock_of(settings)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AddressTaken(
            f"{settings.home} has a server: {_whereabouts(settings)}",
            "freehold stop ends it; another FREEHOLD_HOME and --port give a second one",
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


def _bound(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Bind the port before anything is loaded; if it is taken, say by whom, and which one is free."""
    import errno

    from freehold.server.serve import bind_tcp

    try:
        return bind_tcp(host, port)
    except UsageError as e:
        if not isinstance(e.__cause__, OSError) or e.__cause__.errno != errno.EADDRINUSE:
            raise
    free = next((p for p in range(port + 1, min(port + PORTS, 65535)) if _is_free(host, p)), 0)
    raise AddressTaken(f"port {port} is taken by {_owner(port)}", f"freehold serve {option} {free}")


def _is_free(host: str, port: int) -> bool:
    from freehold.server.serve import bind_tcp

    try:
        for sock in bind_tcp(host, port):
            sock.close()
    except UsageError:
        return False
    return True


def _owner(port: int) -> str:
    """Name the process that listens at `port`, as far as this user may know."""
    import psutil

    try:
        for c in psutil.net_connections("tcp"):
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
                return f"{psutil.Process(c.pid).name()} (pid {c.pid})"
    except psutil.Error:
        pass
    return "another user's process"
