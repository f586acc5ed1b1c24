"""The options of `freehold serve`, checked and put together with the settings; what is printed of who has access.

Knows options and settings; opens nothing but a browser. Path: serve.command -> read_options -> ServeOptions -> opening
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.options import setting_options
from freehold.cli.serving.logs import LogForm, tell
from freehold.cli.shared import Seconds
from freehold.config import Settings
from freehold.errors import UsageError
from freehold.platforms import has_screen
from freehold.reports.gateway_file import gateway_path

if TYPE_CHECKING:
    from freehold.server.console.login import Login
    from freehold.server.core.keys import Key, Ring
    from freehold.server.core.limits import ServerLimits
    from freehold.server.core.sockets import Tls
    from freehold.types import ServedModelOptions
    from freehold.worker.options import EngineOptions


_DOOR = (
    setting_options(Settings, "host", "port", unset=True),
    click.option(
        "--ollama-port",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        help="Also listen on PORT; Ollama's clients expect 11434.",
    ),
    click.option(
        "--key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Require a key whose hash is in FILE. Default: keys.json of the data folder, if it exists.",
    ),
    click.option(
        "--insecure",
        is_flag=True,
        help="Allow other machines without a key; prints who can then send requests.",
    ),
    click.option(
        "--allow-host",
        multiple=True,
        metavar="NAME",
        help="Accept this name in the Host header of requests without a key; repeatable.",
    ),
    click.option(
        "--origin",
        multiple=True,
        metavar="URL",
        help="Allow requests from web pages of this origin; repeatable.",
    ),
    click.option(
        "--console/--no-console",
        default=True,
        help="Serve the page at / and the routes that only the page uses.",
    ),
    click.option("--open", "open_page", is_flag=True, help="Open the page in the browser, as its owner."),
    click.option(
        "--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="Certificate for TLS, in PEM."
    ),
    click.option(
        "--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="Private key of the certificate."
    ),
)


def door_options(command: Callable) -> Callable:
    """Add the options that say where a server listens, and who may ask it."""
    for option in reversed(_DOOR):
        command = option(command)
    return command


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
    console: bool = True  # the page at `/`,
    open_page: bool = False  # which is opened in the browser at the start
    computes: str = "freehold"  # the engine of the models it is started with; auto: by prediction
    own: str = ""  # a given option that our engine alone has


def read_options(settings: Settings, values: dict[str, Any]) -> ServeOptions:
    """Check the options, and fill in from the settings what was not given. Raises UsageError."""
    from freehold.server.core.auth import check_bind
    from freehold.server.core.limits import ServerLimits
    from freehold.server.core.sockets import checked

    host = values["host"] or settings.host
    keys = ring(settings, values["key_file"], insecure=values["insecure"])
    check_bind(host, keys, insecure=values["insecure"])
    hosts = (*own_names(), *values["allow_host"]) if values["insecure"] else values["allow_host"]
    most = values["max_requests"]
    return ServeOptions(
        host=host,
        port=settings.port if values["port"] is None else values["port"],
        ollama_port=values["ollama_port"],
        keys=keys,
        insecure=values["insecure"],
        hosts=tuple(name.lower() for name in hosts),
        origins=values["origin"],
        tls=checked(values["tls_cert"], values["tls_key"]),
        engine=_engine_options(settings, values),
        limits=ServerLimits() if most is None else ServerLimits(caller_requests=most),
        drain_s=values["drain"],
        as_json=values["as_json"],
        adapters=values["adapters"],
        log_level=values["log_level"],
        log_format=values["log_format"],
        gateway=gateway_path(settings, values["gateway"]),
        console=values["console"],
        open_page=values.get("open_page", False),
        computes=values.get("engine") or "freehold",
        own=values.get("own", ""),
    )


def _engine_options(settings: Settings, values: dict[str, Any]) -> EngineOptions:
    """Return the options of the engine processes. Raises UsageError for a draft model without speculation."""
    from freehold.worker.options import EngineOptions

    if values["draft"] and not values["speculate"]:
        raise UsageError("--draft needs speculation, and --no-speculation turns it off", "give one of them")
    kept = Seconds(never=True).convert(settings.keep_alive, None, None)
    limits: ServedModelOptions = {}
    if values["max_queued"] is not None:
        limits["max_queued"] = values["max_queued"]
    if values["target_itl"] is not None:
        limits["target_itl_s"] = values["target_itl"] / 1000
    return EngineOptions(
        context=values["context"],
        kv_type=values["kv_type"],
        threads=values["threads"],
        speculate=values["speculate"],
        allow_paging=values["allow_paging"],
        draft=values["draft"],
        disk=settings.home / "kv" if values["disk_cache"] else None,
        cache_bytes=values["cache_size"],
        max_models=values["max_models"],
        keep_alive_s=kept if values["keep_alive"] is None else values["keep_alive"],
        engine=limits,
    )


def ring(settings: Settings, file: Path | None, *, insecure: bool) -> Ring:
    """Return the accepted keys: those of `file`, or of this home if it has any, and the environment's.

    Once there is a key, requests need one while the server runs. Raises UsageError for a named file without keys, and
    for this home's if it is empty.
    """
    from freehold.server.core.keys import KeyFile, Ring

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
    from freehold.server.core.keys import key_of

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
    from freehold.server.console.login import START_CODE_S

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
    from freehold.server.app import routes
    from freehold.server.core.call import endpoint_of

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
    yield "to close them: freehold keys add NAME, and start without --insecure"


def _reached(host: str) -> list[str]:
    """Return the addresses at which other machines reach a server bound to `host`."""
    import psutil

    from freehold.server.core.auth import host_name, is_loopback

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
