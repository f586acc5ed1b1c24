"""`freehold create NAME`: a model made from another one, without copying weights; `make-tiny FAMILY`: a random one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.cli.options import sampling_options
from freehold.cli.progress import reporter
from freehold.cli.shared import json_option, offline_option, with_offline
from freehold.run.store import Store
from freehold.run.store.contract import OnEvent
from freehold.run.store.create import MAX_CHARS, Recipe, parse
from freehold.run.store.refs import parse_ref

if TYPE_CHECKING:
    from freehold.run.models.tiny.make import TinyConfig


@click.command("create")
@click.argument("name")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="The Modelfile.  [default: Modelfile]")
@click.option("--from", "base", metavar="MODEL", help="Make it from MODEL, without a Modelfile.")
@click.option("--system", metavar="TEXT", help="With --from: its system prompt.")
@sampling_options
@json_option
@offline_option
@click.pass_obj
def command(
    settings: Settings,
    name: str,
    file: Path | None,
    base: str | None,
    system: str | None,
    as_json: bool,
    offline: bool,
    **given: Any,
) -> None:
    """Create NAME from another model, with a system prompt and settings or a Modelfile; no weights are copied.

    In a Modelfile, FROM takes the same names as `pull`; a second FROM names the vision or audio encoder (mmproj) of a
    GGUF file. ADAPTER takes a PEFT folder or a GGUF adapter, and a copy is kept. Relative paths start at the
    Modelfile's folder. NAME shares the engine of its base, unless it has its own template. Prints NAME; with --json,
    the record.
    """
    from freehold.run.store.create import make

    store = Store(with_offline(settings, offline))
    options = parameters_of(given)
    if base is None:
        if system is not None or options:
            raise UsageError(
                "--system and settings need --from MODEL", "a Modelfile has SYSTEM and PARAMETER"
            )
        recipe, folder = _read(file or Path("Modelfile"))
    elif file is not None:
        raise UsageError("--from and --file name two bases", "give one of them")
    else:
        recipe, folder = Recipe(base=base, system=system, parameters=options), Path()
    with reporter(as_json=False) as on_event:
        if recipe.tower:
            recipe = _joined(store, recipe, folder, on_event)
        elif parse_ref(recipe.base).kind == "path":
            beside = (folder / Path(recipe.base).expanduser()).absolute()
            recipe = replace(recipe, base=store.pull(str(beside), on_event).name)
        if recipe.adapter:
            recipe = replace(recipe, adapter=str((folder / Path(recipe.adapter).expanduser()).absolute()))
        overlay = make(store, name, recipe, on_event)
    for note in overlay.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(json.dumps({"schema": 1, "model": asdict(overlay)}, indent=1) if as_json else overlay.name)


def _joined(store: Store, recipe: Recipe, folder: Path, on_event: OnEvent) -> Recipe:
    """Record the model of two files, a GGUF and its tower. Raises UsageError for two that do not fit."""
    from freehold.run.store.eyes import model_and_tower

    named = [name for name in (recipe.base, recipe.tower) if parse_ref(name).kind != "path"]
    if named:
        raise UsageError(
            f"FROM {named[0][:60]}: two FROM lines must both name files: a model's GGUF and its encoder (mmproj)",
            "write FROM ./model.gguf and FROM ./mmproj.gguf; an installed model already has its encoder",
        )
    paths = [(folder / Path(name).expanduser()).absolute() for name in (recipe.base, recipe.tower)]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"FROM {path}: there is no such file")
    model, tower = model_and_tower(*paths)
    name = store.pull(str(model), on_event).name
    return replace(recipe, base=store.join(name, tower).name)


def parameters_of(given: Mapping[str, Any]) -> dict[str, object]:
    """Return the options for sampling that were given, under the names of a Modelfile's PARAMETER.

    Raises UsageError for one that no model can keep.
    """
    found = {name: value for name, value in given.items() if value not in (None, ())}
    renamed = {"repetition_penalty": "repeat_penalty"}
    if "logit_bias" in found:
        raise UsageError("--logit-bias cannot be kept in a model", "give it with each request")
    return {renamed.get(name, name): value for name, value in found.items()}


def _read(file: Path) -> tuple[Recipe, Path]:
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARS + 1)
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"{file} cannot be read: {e}", "name it with -f, or make a model without one: --from MODEL"
        ) from e
    return parse(text), file.parent


# --- `freehold make-tiny FAMILY`: a tiny random model of a family, with tokenizer and chat template -

FORMATS = ("gguf", "safetensors", "both", "ctranslate2")


@click.command("make-tiny")
@click.argument("family", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("."), help="The folder to write into.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="both", show_default=True)
@click.option("--seed", type=click.IntRange(0), help="Seed of the weights; default: the family's own.")
@click.option("--list", "listing", is_flag=True, help="List the families and variants.")
@json_option
def make_tiny_command(
    family: str | None, out: Path, form: str, seed: int | None, listing: bool, as_json: bool
) -> None:
    """Write a random model of FAMILY, with some 100,000 float32 weights, to test programs and engines.

    Its answers are nonsense, but the same on every machine. Writes OUT/FAMILY.gguf, the folder OUT/FAMILY of
    safetensors, or both, and prints their paths. A vision or audio model is larger and has a second GGUF,
    OUT/mmproj-FAMILY.gguf. For Whisper, the second format is CTranslate2 instead: OUT/FAMILY-ctranslate2.
    """
    from freehold.run.models.tiny import make

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
    from freehold.run.models.tiny import make, speech

    files: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    if form == "ctranslate2" or (form == "both" and tiny.writes_speech):
        files["ctranslate2"] = str(speech.write_ctranslate2(tiny, out / f"{tiny.name}-ctranslate2"))
    if tiny.writes_speech and form in ("safetensors", "both"):
        return files | {"safetensors": str(speech.write_safetensors(tiny, out / tiny.name))}
    if form == "gguf" or (form == "both" and tiny.gguf):
        files["gguf"] = str(make.write_gguf(tiny, out / f"{tiny.name}.gguf"))
        if tiny.sees or tiny.hears:
            files["mmproj"] = str(make.write_mmproj(tiny, out / f"mmproj-{tiny.name}.gguf"))
    if form in ("safetensors", "both"):
        files["safetensors"] = str(make.write_safetensors(tiny, out / tiny.name))
    return files
