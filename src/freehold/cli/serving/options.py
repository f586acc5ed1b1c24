"""The options of `freehold serve`, checked and put together with the settings: address, keys, TLS, engine, log.

Knows options and settings; opens nothing. Path: serve.command -> read_options -> ServeOptions
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.serving.logs import LogForm
from freehold.cli.serving.telling import tell
from freehold.cli.shared import Seconds
from freehold.config import Settings
from freehold.errors import UsageError
from freehold.reports.gateway_file import gateway_path

if TYPE_CHECKING:
    from freehold.server.core.keys import Key, Ring
    from freehold.server.core.limits import ServerLimits
    from freehold.server.core.sockets import Tls
    from freehold.types import ServedModelOptions
    from freehold.worker.options import EngineOptions


_DOOR = (
    click.option(
        "--host",
        metavar="ADDRESS",
        help="Listen on this address; beyond loopback a key is required. Default: 127.0.0.1.",
    ),
    click.option(
        "--port", type=click.IntRange(0, 65535), help="Listen on this port; 0: a free one. Default: 11435."
    ),
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
