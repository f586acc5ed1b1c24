"""`freehold rm MODEL...`: deletes models with their packed files; references to other programs' files are dropped.

Path: main -> rm -> Store.remove.
"""

from __future__ import annotations

import json

import click

from freehold.cli.shared import json_option
from freehold.config import Settings
from freehold.store import Removed, Store
from freehold.store.space import human


@click.command("rm")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@json_option
@click.pass_obj
def command(settings: Settings, models: tuple[str, ...], as_json: bool) -> None:
    """Delete each MODEL with its packed files; a file of another program is only removed from the list."""
    store = Store(settings)
    for model in models:
        store.show(model)  # an unknown name is refused before anything is deleted
    removed = [store.remove(model) for model in dict.fromkeys(models)]
    if as_json:
        click.echo(json.dumps({"schema": 1, "removed": [r.as_json() for r in removed]}, indent=1))
        return
    for r in removed:
        click.echo(_summary(r), err=True)


def _summary(r: Removed) -> str:
    if not r.forgotten:
        return f"{r.name}: deleted, {human(r.freed)} freed"
    freed = f"; {human(r.freed)} of packed files freed" if r.freed else ""
    return f"{r.name}: removed from the list; kept {r.path} (owner: {r.owner}){freed}"
