"""`freehold make-tiny FAMILY`: write a tiny random model of a family, with tokenizer and chat template.

Path: main -> make_tiny -> models/tiny/make.py; the paths go to stdout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.shared import json_option
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.models.tiny.make import TinyConfig

FORMATS = ("gguf", "safetensors", "both")


@click.command("make-tiny")
@click.argument("family", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("."), help="The folder to write into.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="both", show_default=True)
@click.option("--seed", type=click.IntRange(0), help="Seed of the weights; default: the family's own.")
@click.option("--list", "listing", is_flag=True, help="List the families and variants.")
@json_option
def command(family: str | None, out: Path, form: str, seed: int | None, listing: bool, as_json: bool) -> None:
    """Write a random model of FAMILY, with some 100,000 float32 weights, to test programs and engines.

    Its answers are nonsense, but the same on every machine. Writes OUT/FAMILY.gguf, the folder OUT/FAMILY of
    safetensors, or both, and prints their paths.
    """
    from freehold.models.tiny import make

    if listing:
        for tiny in map(make.config, make.names()):
            shown = {"name": tiny.name, "class": tiny.hf["architectures"][0], "gguf": tiny.architecture}
            click.echo(
                json.dumps(shown) if as_json else f"{tiny.name:24} {shown['class']:28} {shown['gguf'] or '-'}"
            )
        return
    if family is None:
        raise UsageError("which family?", "freehold make-tiny --list shows all")
    tiny = make.config(family, seed)
    files = _write(tiny, out, form)
    click.echo(json.dumps(files) if as_json else "\n".join(files.values()))


def _write(tiny: TinyConfig, out: Path, form: str) -> dict[str, str]:
    from freehold.models.tiny import make

    files: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    if form == "gguf" or (form == "both" and tiny.gguf):
        files["gguf"] = str(make.write_gguf(tiny, out / f"{tiny.name}.gguf"))
    if form != "gguf":
        files["safetensors"] = str(make.write_safetensors(tiny, out / tiny.name))
    return files
