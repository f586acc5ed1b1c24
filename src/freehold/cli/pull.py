"""`freehold pull MODEL`: fetch a model, or reference one that is already on this machine.

Path: main -> pull -> Store.pull -> a source; events -> progress.py; the path goes to stdout.
"""

from __future__ import annotations

import click

from freehold.cli.progress import reporter
from freehold.cli.shared import json_option, offline_option, with_offline
from freehold.config import Settings
from freehold.store import Store
from freehold.terminal import Ticking


@click.command("pull")
@click.argument("model")
@click.option(
    "--quant",
    type=click.Choice(["q8", "q6", "q4", "none"]),
    help="Round the float weights of safetensors to 8.5, 6.6 or about 5 bits when they are packed.",
)
@json_option
@offline_option
@click.pass_obj
def command(settings: Settings, model: str, quant: str | None, as_json: bool, offline: bool) -> None:
    """Download MODEL, or add a file that is already on this machine.

    If Freehold's engine does not support the architecture, MODEL is refused before anything is downloaded, and the
    error names what is missing.

    Prints the model's path. With --json, prints one event per line instead.
    """
    rounding = "" if quant == "none" else quant
    store = Store(with_offline(settings, offline))
    with Ticking(f"looking up {model}"):
        from freehold.local.runnable import check_fetch  # with the engine, which `--help` does without

        check_fetch(store, model)
    with reporter(as_json=as_json) as on_event:
        ref = store.pull(model, on_event, rounding)
    if not as_json:
        click.echo(ref.path)
