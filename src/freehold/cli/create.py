"""`freehold create NAME -f Modelfile`: make a model from another one, without copying weights.

Path: main -> create -> modelfile.parse -> create.make
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import click

from freehold.cli.progress import reporter
from freehold.cli.shared import json_option, offline_option, with_offline
from freehold.config import Settings
from freehold.errors import UsageError
from freehold.store import Store
from freehold.store.refs import parse_ref


@click.command("create")
@click.argument("name")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    default=Path("Modelfile"),
    show_default=True,
    help="The Modelfile.",
)
@json_option
@offline_option
@click.pass_obj
def command(settings: Settings, name: str, file: Path, as_json: bool, offline: bool) -> None:
    """Make NAME from the base, parameters, texts and messages of a Modelfile; no weights are copied.

    FROM takes what `pull` takes; ADAPTER takes a PEFT folder or a GGUF adapter, and a copy is kept. Relative paths
    start at the Modelfile's folder. NAME shares the engine of its base, unless it has its own template. Prints NAME;
    with --json, the record.
    """
    from freehold.store.create import make
    from freehold.store.modelfile import MAX_CHARS, parse

    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARS + 1)
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{file} cannot be read: {e}", "name it with -f") from e
    recipe = parse(text)
    store = Store(with_offline(settings, offline))
    with reporter(as_json=False) as on_event:
        if parse_ref(recipe.base).kind == "path":
            beside = (file.parent / Path(recipe.base).expanduser()).absolute()
            recipe = replace(recipe, base=store.pull(str(beside), on_event).name)
        if recipe.adapter:
            recipe = replace(
                recipe, adapter=str((file.parent / Path(recipe.adapter).expanduser()).absolute())
            )
        made = make(store, name, recipe, on_event)
    for note in made.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps({"schema": 1, "model": asdict(made)}, indent=1) if as_json else made.name)
