"""`freehold serve [MODEL ...]`: an HTTP server for models, with one engine process per model.

Knows the options; serving/running.py starts the server. One server per home holds its lock while it runs; `ps`, `stop`
and `run` reach it through its Unix socket.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from freehold.base.config import Settings, strange_variables
from freehold.cli.helping import section
from freehold.cli.options import setting_options
from freehold.cli.serving.engines import OWN
from freehold.cli.serving.logs import tell
from freehold.cli.serving.options import ServeRequest, door_options, eyes_options, read_options
from freehold.cli.serving.running import named, serve_models
from freehold.cli.shared import (
    draft_option,
    drain_option,
    engine_option,
    gateway_option,
    json_option,
    kv_option,
    offline_option,
    paging_option,
    speculate_option,
    with_offline,
)
from freehold.run.store import Store


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@section("Address and access")
@door_options
@section("Loading models")
@setting_options(ServeRequest, "context")
@kv_option
@draft_option
@speculate_option
@paging_option
@engine_option
@eyes_options
@setting_options(ServeRequest, "adapters", "threads", "cache_size", "keep_alive", "max_models", "disk_cache")
@section("Limits")
@setting_options(ServeRequest, "max_queued", "max_requests", "target_itl")
@section("The server")
@gateway_option
@drain_option
@setting_options(ServeRequest, "log_level", "log_format")
@click.option(
    "--install-service",
    is_flag=True,
    help="Write a systemd user unit (macOS: launchd agent) with these options, and exit.",
)
@click.option("--force", is_flag=True, help="With --install-service: overwrite an existing unit.")
@section("Output and network")
@json_option
@offline_option
@click.pass_context
def command(ctx: click.Context, models: tuple[str, ...], **values: Any) -> None:
    """Serve models over HTTP to clients of the OpenAI, Anthropic and Ollama APIs.

    Each MODEL (a name, a file, org/repo[:quant]) is downloaded if necessary, and loaded at the start. Other
    installed models are loaded when a request names them, and unloaded after --keep-alive or when memory is needed.

    If there is a GPU with an engine for it, each MODEL runs in the engine that is predicted to be fastest, and the
    reason is printed. --engine freehold forces the CPU.

    After SIGTERM or Ctrl-C, the server finishes running answers, for at most --drain; a second signal stops it at
    once. With --json, stdout gets one line once all models are loaded: {"url": ..., "models": [...], ...}.
    """
    settings = with_offline(ctx.obj, values.pop("offline"))
    for note in strange_variables(os.environ):
        tell(f"warning: {note}")
    force, installing = values.pop("force"), values.pop("install_service")
    source = click.core.ParameterSource.COMMANDLINE
    own = next((o for name, o in OWN.items() if ctx.get_parameter_source(name) is source), "")
    options = read_options(settings, ServeRequest(own=own, **values))
    store = Store(settings)
    if installing:
        from freehold.cli.serving.service import install

        names = [named(store, model) for model in models]
        _tell_variables(settings, options.gateway)
        ctx.exit(install(ctx, settings, names, options.drain_s, force=force, as_json=options.as_json))
    ctx.exit(serve_models(settings, store, models, options))


def _tell_variables(settings: Settings, path: Path | None) -> None:
    """Check a service's gateway.toml, and name the keys that only its environment can give it."""
    if path is None:
        return
    from freehold.cli.serving.hybrid import missing_variables

    if names := missing_variables(settings, path):
        tell(
            f"note: the service needs {', '.join(names)} in its environment; keys in the keyring need nothing"
        )
