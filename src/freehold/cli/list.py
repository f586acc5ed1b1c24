"""`freehold list`: models in the store, unfinished pulls, and models of other programs.

In JSON a model has the fields of `Listed`; `schema` is raised when one changes its meaning.
Path: main -> list -> Store.list. No network.
"""

from __future__ import annotations

import json

import click

from freehold.cli.shared import json_option, table
from freehold.config import Settings
from freehold.store import Listed, Store
from freehold.store.records import STATE_WORDS
from freehold.store.space import human

SCHEMA = 1


@click.command("list")
@json_option
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """List installed models, including those of other programs, with size and owner.

    A copy, or a model made from another one, shares that model's weights: STATE names that model, and SIZE is only
    what the name adds.

    With --json, prints {"schema": 1, "home": ..., "models": [...]}.
    """
    models = Store(settings).list()
    if as_json:
        listing = {"schema": SCHEMA, "home": str(settings.home), "models": [m.as_json() for m in models]}
        click.echo(json.dumps(listing, indent=1))
        return
    if not models:
        click.echo("no models yet: freehold pull qwen2.5-coder:0.5b fetches one", err=True)
        return
    table(("NAME", "SIZE", "PACKED", "OWNER", "STATE", "LAST USED"), [_row(m) for m in models], right=(1, 2))


def _row(m: Listed) -> tuple[str, ...]:
    size = f"{human(m.held)} of {human(m.bytes)}" if m.state == "incomplete" else human(m.bytes)
    state = STATE_WORDS.get(m.state, m.state)
    if m.base:  # whose weights are counted in a row of their own
        size, state = human(m.held), f"{state}, weights of {m.base}"
    used = m.last_used[:10] or "never"
    return m.name, size, human(m.pack_bytes) if m.pack_bytes else "", m.owner, state, used
