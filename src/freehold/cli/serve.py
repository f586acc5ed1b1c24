"""`freehold serve [MODEL ...]`: an HTTP server for models, with one engine process per model.

Knows the options; serving/running.py starts the server. One server per home holds its lock while it runs; `ps`, `stop`
and `run` reach it through its Unix socket.
Path: main -> serve -> serving/options.py -> serving/running.py -> server.serve.run
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from freehold.cli.helping import section
from freehold.cli.serving.engines import OWN
from freehold.cli.serving.logs import LEVELS, tell
from freehold.cli.serving.options import door_options, read_options
from freehold.cli.serving.running import named, serve_models
from freehold.cli.shared import (
    MemorySize,
    Seconds,
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
from freehold.config import Settings, strange_variables
from freehold.store import Store


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@section("Address and access")
@door_options
@section("Loading models")
@click.option(
    "--context",
    type=click.IntRange(1),
    help="Context in tokens; default: the model's, if it fits into memory.",
)
@kv_option
@draft_option
@speculate_option
@paging_option
@engine_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[MODEL+]NAME=PATH",
    help="Serve a LoRA adapter of MODEL (default: the first) as MODEL+NAME; repeatable.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Number of compute threads.")
@click.option(
    "--cache-size",
    type=MemorySize(),
    metavar="SIZE",
    help="Memory of each model's KV cache: 2GB, 500MB. Default: half of what is free.",
)
@click.option(
    "--keep-alive",
    type=Seconds(never=True),
    metavar="TIME",
    help="Unload a model after this idle time, or never. Default: 5m.",
)
@click.option("--max-models", type=click.IntRange(1), help="Maximum number of models in memory.")
@click.option(
    "--disk-cache/--no-disk-cache",
    default=True,
    help="Store the KV cache of long prompts in the data folder; it survives restarts.",
)
@section("Limits")
@click.option(
    "--max-queued",
    type=click.IntRange(1),
    help="Maximum waiting requests per model; more are refused (429). Default: 512.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Maximum concurrent requests per key, or per address without keys (429). Default: 256.",
)
@click.option(
    "--target-itl",
    type=click.FloatRange(1),
    metavar="MS",
    help="Target inter-token latency of running answers during prefill, in milliseconds.",
)
@section("The server")
@gateway_option
@drain_option
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
    values["own"] = next((o for name, o in OWN.items() if ctx.get_parameter_source(name) is source), "")
    options = read_options(settings, values)
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
