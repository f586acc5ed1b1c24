"""`freehold pull|list|cp|rm|update`: the verbs about the models in the store."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict

import click

from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, UsageError
from freehold.base.terminal import Ticking
from freehold.cli.progress import StatusLine, reporter
from freehold.cli.shared import json_option, offline_option, table, with_offline
from freehold.run.store import Listed, ModelRef, Removed, Store
from freehold.run.store.eyes import has_ears, has_tower
from freehold.run.store.records import STATE_WORDS
from freehold.run.store.renewing import Renewal, fetched, renewable, renewal, take
from freehold.run.store.space import human

# --- `freehold list`: models in the store, unfinished pulls, and models of other programs -----------
# In JSON a model has the fields of `Listed`; `schema` is raised when one changes its meaning.

SCHEMA = 1


@click.command("list")
@json_option
@click.pass_obj
def list_command(settings: Settings, as_json: bool) -> None:
    """List installed models, including those of other programs, with size and owner.

    A copy, or a model made from another one, shares that model's weights: STATE names that model, and SIZE is only
    what the name adds.

    With --json, prints {"schema": 1, "home": ..., "models": [...]}.
    """
    models = Store(settings).list()
    if as_json:
        senses = map(_senses, models)
        rows = [{**m.as_json(), "sees": s, "hears": h} for m, (s, h) in zip(models, senses, strict=True)]
        listing = {"schema": SCHEMA, "home": str(settings.home), "models": rows}
        click.echo(json.dumps(listing, indent=1))
        return
    if not models:
        click.echo("no models yet: freehold pull qwen2.5-coder:0.5b fetches one", err=True)
        return
    table(
        ("NAME", "SIZE", "PACKED", "READS", "OWNER", "STATE", "LAST USED"),
        [_list_row(m) for m in models],
        right=(1, 2),
    )


def _list_row(m: Listed) -> tuple[str, ...]:
    size = f"{human(m.held)} of {human(m.bytes)}" if m.state == "incomplete" else human(m.bytes)
    state = STATE_WORDS.get(m.state, m.state)
    if m.base:  # whose weights are counted in a row of their own
        size, state = human(m.held), f"{state}, weights of {m.base}"
    used = m.last_used[:10] or "never"
    packed = human(m.pack_bytes) if m.pack_bytes else ""
    sees, hears = _senses(m)
    senses = " and ".join(word for word, able in (("pictures", sees), ("audio", hears)) if able)
    return m.name, size, packed, senses, m.owner, state, used


def _senses(m: Listed) -> tuple[bool, bool]:
    """Return whether a model comes with a tower of pictures, and of sounds; `show` says whether Freehold runs them."""
    with suppress(FreeholdError, OSError):
        if m.state in ("ready", "changed"):
            return has_tower(m), has_ears(m)
    return False, False


# --- `freehold pull MODEL`: fetch a model, or reference one that is already on this machine ---------


@click.command("pull")
@click.argument("model")
@click.option(
    "--quant",
    type=click.Choice(["q8", "q6", "q4", "none"]),
    help="Round the float weights of safetensors to 8.5, 6.6 or about 5 bits when they are packed.",
)
@click.option(
    "--eyes/--no-eyes",
    default=None,
    help="Download the vision encoder (mmproj) of a GGUF repository, or leave it out. Default: download it.",
)
@json_option
@offline_option
@click.pass_obj
def pull_command(
    settings: Settings, model: str, quant: str | None, eyes: bool | None, as_json: bool, offline: bool
) -> None:
    """Download MODEL, or add a file that is already on this machine.

    If Freehold's engine does not support the architecture, MODEL is refused before anything is downloaded, and the
    error names what is missing. A GGUF vision model comes with its vision encoder. For an installed model, --no-eyes
    deletes the encoder and --eyes downloads it.

    Prints the model's path. With --json, prints one event per line instead.
    """
    rounding = "" if quant == "none" else quant
    store = Store(with_offline(settings, offline))
    with Ticking(f"looking up {model}"):
        from freehold.run.local.runnable import check_fetch  # with the engine, which `--help` does without

        check_fetch(store, model)
    with reporter(as_json=as_json) as on_event:
        ref = store.pull(model, on_event, rounding, eyes)
    if not as_json:
        click.echo(ref.path)


# --- `freehold cp MODEL NAME`: another name for a model; no weights are copied ----------------------


@click.command("cp")
@click.argument("model")
@click.argument("name")
@json_option
@click.pass_obj
def cp_command(settings: Settings, model: str, name: str, as_json: bool) -> None:
    """Give MODEL another NAME; no weights are copied.

    `freehold rm NAME` removes the name alone. Prints NAME; with --json, the record.
    """
    from freehold.run.store.create import copy

    made = copy(Store(settings), model, name)
    click.echo(json.dumps({"schema": 1, "model": asdict(made)}, indent=1) if as_json else made.name)


# --- `freehold rm MODEL...`: deletes them; references to other programs' files are dropped ----------


@click.command("rm")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@json_option
@click.pass_obj
def rm_command(settings: Settings, models: tuple[str, ...], as_json: bool) -> None:
    """Delete each MODEL with its packed files; a file of another program is only removed from the list."""
    store = Store(settings)
    for model in models:
        store.show(model)  # an unknown name is refused before anything is deleted
    removed = [store.remove(model) for model in dict.fromkeys(models)]
    if as_json:
        click.echo(json.dumps({"schema": 1, "removed": [r.as_json() for r in removed]}, indent=1))
        return
    for r in removed:
        click.echo(_removed(r), err=True)


def _removed(r: Removed) -> str:
    if not r.forgotten:
        return f"{r.name}: deleted, {human(r.freed)} freed"
    freed = f"; {human(r.freed)} of packed files freed" if r.freed else ""
    return f"{r.name}: removed from the list; kept {r.path} (owner: {r.owner}){freed}"


# --- `freehold update [MODEL]`: the exchange with a newer revision, once that one answers -----------


@click.command("update")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--check", is_flag=True, help="Print what would change; download nothing.")
@json_option
@offline_option
@click.pass_obj
def update_command(
    settings: Settings, models: tuple[str, ...], check: bool, as_json: bool, offline: bool
) -> None:
    """Download newer versions of MODELs; default: all models that Freehold downloaded.

    First prints what changes. The old files stay until the new ones are downloaded, checked and have produced an
    answer. Then the old files and their packed copies are deleted. With --json, prints {"schema": 1, "models":
    [{"name", "changes", "updated"}, ...]}.
    """
    store = Store(with_offline(settings, offline))
    names = models or tuple(m.name for m in store.list() if renewable(m) and not m.source.startswith("sent:"))
    if not names:
        raise UsageError("no model was downloaded yet", "freehold pull MODEL fetches one")
    rows = []
    for name in names:
        with reporter() as on_event:
            new = renewal(store, name, on_event)
        if not as_json:
            state = "a newer revision" if new.changes else "current"
            click.echo(f"{new.model.name}: {state} ({new.plan.source})")
            for line in new.changes:
                click.echo(f"  {line}")
        if new.changes and not check:
            _exchange(store, new)
        rows.append(
            {"name": new.model.name, "changes": new.changes, "updated": bool(new.changes) and not check}
        )
    if as_json:
        click.echo(json.dumps({"schema": 1, "models": rows}, indent=1))


def _exchange(store: Store, new: Renewal) -> None:
    with reporter() as on_event:
        ref = fetched(store, new, on_event)
    with StatusLine("the model is as it was; the same command continues") as status:
        status.begin("trying the new files ...")
        try:
            _try(ref)
        except FreeholdError as e:
            raise type(e)(
                f"the new files of {new.model.name} do not answer: {e.message}", "the old ones stay"
            ) from e
    click.echo(f"{new.model.name}: updated, {human(take(store, new))} freed", err=True)


def _try(ref: ModelRef) -> None:
    """Load the files and make one token, or one vector; of a speech model loading is all."""
    from freehold.run.local import open_model
    from freehold.run.store.eyes import hears

    if hears(ref):
        from freehold.run.local.speech import load_speech

        load_speech(ref).close()
        return
    with open_model(ref, context=64) as llm:
        if llm.info.embeds_only:
            llm.embed("Hi")
        else:
            llm.generate("Hi", max_tokens=1)
