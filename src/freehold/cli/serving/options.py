"""The options of `freehold serve`, checked and put together with the settings; what is printed of who has access.

Knows options and settings; opens nothing but a browser.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from freehold.base.config import Settings, suggestion
from freehold.base.errors import UsageError
from freehold.base.options import option
from freehold.base.platforms import has_screen
from freehold.base.types import EYES, draft_source, image_budget
from freehold.cli.options import setting_options
from freehold.cli.serving.logs import LEVELS, LogForm, tell
from freehold.cli.shared import Seconds
from freehold.serve.reports.gateway_file import gateway_path

if TYPE_CHECKING:
    from freehold.base.types import KvType, ServedModelOptions
    from freehold.serve.http.console.login import Login
    from freehold.serve.http.core.keys import Key, Ring
    from freehold.serve.http.core.limits import ServerLimits
    from freehold.serve.http.core.sockets import Tls
    from freehold.serve.worker.client import EngineOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """The command line of a server. None: not given."""

    host: str | None = None  # this and the next are options of the settings
    port: int | None = None
    ollama_port: int | None = option(
        None, "Also listen on PORT; Ollama's clients expect 11434.", least=1, most=65535, metavar="PORT"
    )
    key_file: Path | None = option(
        None,
        "Require a key whose hash is in FILE. Default: keys.json of the data folder, if it exists.",
        form="path",
        metavar="FILE",
    )
    insecure: bool = option(False, "Allow other machines without a key; prints who can then send requests.")
    allow_host: tuple[str, ...] = option(
        (), "Accept this name in the Host header of requests without a key; repeatable.", metavar="NAME"
    )
    origin: tuple[str, ...] = option(
        (), "Allow requests from web pages of this origin; repeatable.", metavar="URL"
    )
    media_host: tuple[str, ...] = option(
        (),
        "Fetch pictures that requests name by https URLs of this host; repeatable. Default: fetch none.",
        metavar="HOST",
    )
    tool: tuple[str, ...] = option(
        (),
        "Run this tool for /v1/responses, confined: code_interpreter or shell; repeatable. Default: none.",
        metavar="NAME",
    )
    console: bool = option(
        True, "Serve the page at / and the routes that only the page uses.", off="no-console"
    )
    open_page: bool = option(
        False, "Open the web console in the browser, signed in as the owner.", name="open"
    )
    tls_cert: Path | None = option(None, "Certificate for TLS, in PEM.", form="path", metavar="FILE")
    tls_key: Path | None = option(None, "Private key of the certificate.", form="path", metavar="FILE")
    context: int | None = option(
        None, "Context in tokens; default: the model's, if it fits into memory.", least=1
    )
    kv_type: KvType = "f16"
    draft: str | None = None
    speculate: bool = True
    allow_paging: bool = False
    engine: str | None = "auto"
    adapters: tuple[str, ...] = option(
        (),
        "Serve a LoRA adapter of MODEL (default: the first) as MODEL+NAME; repeatable.",
        name="adapter",
        metavar="[MODEL+]NAME=PATH",
    )
    eyes: str | None = None  # this and the next are options of the settings
    image_tokens: str | None = None
    threads: int | None = option(None, "Number of compute threads.", least=1, most=1024)
    cache_size: int | None = option(
        None,
        "Memory of each model's KV cache: 2GB, 500MB. Default: half of what is free.",
        form="bytes",
        metavar="SIZE",
    )
    keep_alive: float | None = option(
        None, "Unload a model after this idle time, or never. Default: 5m.", form="never", metavar="TIME"
    )
    max_models: int | None = option(None, "Maximum number of models in memory.", least=1)
    disk_cache: bool = option(
        True,
        "Store the KV cache of long prompts in the data folder; it survives restarts.",
        off="no-disk-cache",
    )
    max_queued: int | None = option(
        None, "Maximum waiting requests per model; more are refused (429). Default: 512.", least=1
    )
    max_requests: int | None = option(
        None,
        "Maximum concurrent requests per key, or per address without keys (429). Default: 256.",
        least=1,
        most=1_000_000,
        metavar="N",
    )
    target_itl: float | None = option(
        None,
        "Target inter-token latency of running answers during prefill, in milliseconds.",
        least=1,
        metavar="MS",
    )
    gateway: Path | None = None
    drain: float = 30.0
    log_level: str = option(
        "info",
        "Level of the log on stderr: info logs every request, warning only failures.",
        choices=LEVELS,
    )
    log_format: LogForm = option(
        "text", "json: one object per line. Prompts and answers are never logged.", choices=get_args(LogForm)
    )
    as_json: bool = False
    own: str = ""  # a given option that our engine alone has


def door_options(command: Callable) -> Callable:
    """Add the options that say where a server listens, and who may ask it."""
    names = (
        "ollama_port",
        "key_file",
        "insecure",
        "allow_host",
        "origin",
        "media_host",
        "tool",
        "console",
        "open_page",
    )
    command = setting_options(ServeRequest, *names, "tls_cert", "tls_key")(command)
    return setting_options(Settings, "host", "port", unset=True)(command)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options and the settings of one server, checked."""

    host: str
    port: int
    ollama_port: int | None
    keys: Ring
    insecure: bool
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    tls: Tls | None
    engine: EngineOptions
    limits: ServerLimits
    drain_s: float
    as_json: bool
    adapters: tuple[str, ...]
    log_level: str
    log_format: LogForm
    gateway: Path | None  # gateway.toml
    media_hosts: tuple[str, ...] = ()  # from which pictures may be fetched
    tools: tuple[str, ...] = ()  # that responses may run on this machine
    console: bool = True  # the page at `/`,
    open_page: bool = False  # which is opened in the browser at the start
    computes: str = "freehold"  # the engine of the models it is started with; auto: by prediction
    own: str = ""  # a given option that our engine alone has


def read_options(settings: Settings, request: ServeRequest) -> ServeOptions:
    """Check the options, and fill in from the settings what was not given. Raises UsageError."""
    from freehold.serve.http.core.auth import check_bind
    from freehold.serve.http.core.limits import ServerLimits
    from freehold.serve.http.core.media import host_name
    from freehold.serve.http.core.sockets import checked

    host = request.host or settings.host
    keys = ring(settings, request.key_file, insecure=request.insecure)
    check_bind(host, keys, insecure=request.insecure)
    hosts = (*own_names(), *request.allow_host) if request.insecure else request.allow_host
    most = request.max_requests
    return ServeOptions(
        host=host,
        port=settings.port if request.port is None else request.port,
        ollama_port=request.ollama_port,
        keys=keys,
        insecure=request.insecure,
        hosts=tuple(name.lower() for name in hosts),
        origins=request.origin,
        media_hosts=tuple(map(host_name, request.media_host)),
        tools=confined_tools(request.tool),
        tls=checked(request.tls_cert, request.tls_key),
        engine=_engine_options(settings, request),
        limits=ServerLimits() if most is None else ServerLimits(caller_requests=most),
        drain_s=request.drain,
        as_json=request.as_json,
        adapters=request.adapters,
        log_level=request.log_level,
        log_format=request.log_format,
        gateway=gateway_path(settings, request.gateway),
        console=request.console,
        open_page=request.open_page,
        computes=request.engine or "freehold",
        own=request.own,
    )


def confined_tools(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tools that --tool names. Raises UsageError for an unknown one, or one that cannot be confined here."""
    if not names:
        return ()
    from freehold.serve.http.openai.responses.containers import SERVER_TOOLS, check_confined

    for name in names:
        if name not in SERVER_TOOLS:
            raise UsageError(
                f"--tool {name[:40]}: there is no such tool",
                suggestion(name, SERVER_TOOLS, f"tools: {', '.join(SERVER_TOOLS)}"),
            )
        check_confined(name)
    return tuple(dict.fromkeys(names))


def _engine_options(settings: Settings, request: ServeRequest) -> EngineOptions:
    """Return the options of the engine processes. Raises UsageError for a draft model without speculation."""
    from freehold.serve.worker.client import EngineOptions

    if request.draft and not request.speculate:
        raise UsageError("--draft needs speculation, and --no-speculation turns it off", "give one of them")
    draft, head = draft_source(request.draft)
    budget = request.image_tokens or settings.image_tokens
    kept = Seconds(never=True).convert(settings.keep_alive, None, None)
    limits: ServedModelOptions = {}
    if head is not None:
        limits["head"] = head
    if request.max_queued is not None:
        limits["max_queued"] = request.max_queued
    if request.target_itl is not None:
        limits["target_itl_s"] = request.target_itl / 1000
    return EngineOptions(
        context=request.context,
        kv_type=request.kv_type,
        threads=request.threads,
        speculate=request.speculate,
        allow_paging=request.allow_paging,
        eyes=checked_eyes(request.eyes or settings.eyes),
        image_tokens=image_budget(budget) if budget else None,
        draft=draft,
        disk=settings.home / "kv" if request.disk_cache else None,
        cache_bytes=request.cache_size,
        max_models=request.max_models,
        keep_alive_s=kept if request.keep_alive is None else request.keep_alive,
        engine=limits,
    )


def eyes_options(command: Callable) -> Callable:
    """Add the options that say when a model's tower is loaded, and how many tokens a picture becomes."""
    return setting_options(Settings, "eyes", "image_tokens", unset=True)(command)


def checked_eyes(chosen: str) -> str:
    """Return a value of --eyes, a file by its whole path. Raises UsageError where there is none."""
    if chosen in EYES:
        return chosen
    path = Path(chosen).expanduser().absolute()
    if not path.exists():
        hint = f"give {', '.join(EYES)} or the path of an mmproj file"
        raise UsageError(f"--eyes {chosen}: there is no such file", hint)
    return str(path)


def ring(settings: Settings, file: Path | None, *, insecure: bool) -> Ring:
    """Return the accepted keys: those of `file`, or of this home if it has any, and the environment's.

    Once there is a key, requests need one while the server runs. Raises UsageError for a named file without keys, and
    for this home's if it is empty.
    """
    from freehold.serve.http.core.keys import KeyFile, Ring

    named = bool(file or settings.key_file)
    kept = KeyFile(file.expanduser() if file else settings.keys)
    if named and not kept.read():
        raise UsageError(f"{kept.path} holds no key", f"freehold keys add NAME --file {kept.path}")
    own = _from_environment(settings.api_key)
    if kept.emptied() and not own and not insecure:
        raise UsageError(
            f"{kept.path} had keys and has none now: without a key every program here would have access",
            f"freehold keys add NAME makes one; rm {kept.path} serves without keys",
        )
    return Ring(own, kept, needed=named)


def _from_environment(secret: str) -> list[Key]:
    """Return the key in FREEHOLD_API_KEY; an invalid one, which may be meant for a client, is a warning."""
    from freehold.serve.http.core.keys import key_of

    try:
        return [key_of("environment", secret)] if secret else []
    except UsageError as e:
        tell(f"warning: FREEHOLD_API_KEY is not a key of this server: {e.message}")
        return []


def own_names() -> list[str]:
    """Return this machine's own host names."""
    name = socket.gethostname().lower()
    return list(dict.fromkeys([name, name.partition(".")[0], f"{name.partition('.')[0]}.local"]))


# --- what a starting server prints: the page's link, reachable addresses, TLS, what --insecure opens

_SOON_DAYS = 14  # before a certificate expires, with a warning


def page_line(login: Login, url: str) -> str:
    """Return the line that leads to the page.

    On a terminal it is a link that signs its browser in as the owner, once: a file or a journal, which keeps what it
    is sent, gets no code.
    """
    from freehold.serve.http.console.login import START_CODE_S

    if not sys.stderr.isatty():
        return f"the page: {url}/ (freehold open: as the owner)"
    link = owner_address(url, login.new_code(START_CODE_S))
    return f"open the page: {link} (signs you in, once, within an hour; later: freehold open)"


def owner_address(url: str, code: str) -> str:
    """Return the address of the page that signs its browser in as the owner."""
    return f"{url}/#/open/{code}"


def open_browser(address: str) -> bool:
    """Open an address in this machine's browser; return False where there is none, or no screen."""
    import webbrowser

    if not has_screen():
        return False
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False


def opening(options: ServeOptions, url: str) -> Iterator[str]:
    """Yield the lines: all open routes for --insecure, a certificate's names and end, a note about missing TLS."""
    if options.insecure:
        yield from _insecure(options, url)
    if options.tls is not None:
        ends = f"{options.tls.days_left:.0f} days" if options.tls.days_left >= 1 else "less than a day"
        yield f"TLS: certificate for {', '.join(options.tls.names) or 'no name'}, valid for {ends}"
        if options.tls.days_left < _SOON_DAYS:
            yield f"warning: the certificate expires in {ends}; restart the server with a new one"
    elif _reached(options.host) and options.keys:
        yield "note: without TLS the network can read keys and chats; --tls-cert and --tls-key turn it on"


def _insecure(options: ServeOptions, url: str) -> Iterator[str]:
    from freehold.serve.http.app import routes
    from freehold.serve.http.core.call import endpoint_of

    port = url.rpartition(":")[2]
    scheme = url.partition(":")[0]
    reached = _reached(options.host)
    if not reached:
        yield f"--insecure has no effect: {options.host} is reachable from this machine only"
        return
    where = ", ".join(f"{scheme}://{f'[{a}]' if ':' in a else a}:{port}" for a in reached)
    yield f"INSECURE: every host that reaches {where} may use these routes without a key:"
    open_to = [r for r in routes(console=options.console) if endpoint_of(r).audience != "admin"]
    for route in open_to:
        method = next(m for m in ("POST", "GET", "PATCH", "DELETE", "HEAD") if m in (route.methods or ()))
        yield f"  {method:<6} {route.path}"
    yield "that includes every model, compute time and /metrics; /admin/* stays closed"
    if options.tools:
        yield f"and running code on this machine, confined: {', '.join(options.tools)}"
    yield "to close them: freehold keys add NAME, and start without --insecure"


def _reached(host: str) -> list[str]:
    """Return the addresses at which other machines reach a server bound to `host`."""
    import psutil

    from freehold.serve.http.core.auth import host_name, is_loopback

    name = host_name(host)
    if is_loopback(name):
        return []
    if name not in ("0.0.0.0", "::", ""):
        return [name]
    families = {socket.AF_INET} if name == "0.0.0.0" else {socket.AF_INET6}
    families = families | {socket.AF_INET, socket.AF_INET6} if name == "" else families
    reachable = [
        a.address
        for addresses in psutil.net_if_addrs().values()
        for a in addresses
        if a.family in families and not is_loopback(a.address.partition("%")[0])
    ]
    return [a for a in reachable if not a.startswith("fe80:")] or [name or "every address"]
