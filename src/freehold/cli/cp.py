"""`freehold cp MODEL NAME`: another name for a model; no weights are copied.

Path: main -> cp -> store.create.copy -> Overlays.write
"""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from freehold.cli.shared import json_option
from freehold.config import Settings
from freehold.store import Store


@click.command("cp")
@click.argument("model")
@click.argument("name")
@json_option
@click.pass_obj
def command(settings: Settings, model: str, name: str, as_json: bool) -> None:
    """Give MODEL another NAME; no weights are copied.

    `freehold rm NAME` removes the name alone. Prints NAME; with --json, the record.
    """
    from freehold.store.create import copy

    made = copy(Store(settings), model, name)
    click.echo(json.dumps({"schema": 1, "model": asdict(made)}, indent=1) if as_json else made.name)
