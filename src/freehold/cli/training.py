"""Options and rows that the verbs share which train an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from freehold.adapt.registry import note
from freehold.adapt.settings import AdapterSettings
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.options import options_of
from freehold.cli.options import setting_options
from freehold.cli.progress import StatusLine, result_of
from freehold.cli.shared import pairs

if TYPE_CHECKING:
    from freehold.run.store import Store
    from freehold.run.store.naming import AdaptedModel

BASE = "MODEL[+ADAPTER]"
LINES = click.Path(path_type=Path, exists=True, dir_okay=False)  # a file of JSON lines
FOLDER = click.Path(path_type=Path, file_okay=False)
Command = TypeVar("Command", bound=Callable[..., Any])
SettingsType = TypeVar("SettingsType")

out_option = click.option("-o", "--out", required=True, type=FOLDER, help="The folder to create.")
half_option = click.option("--half/--no-half", default=None, help=options_of(AdapterSettings)["half"].help)


continue_option = click.option(
    "--continue",
    "continued",
    is_flag=True,
    help="Train ADAPTER itself; without this, another adapter is trained on top of it.",
)


def named_base(store: Store, text: str, *, continued: bool = False) -> AdaptedModel:
    """Find MODEL[+ADAPTER]. Raises UsageError for --continue without an adapter, and with a rank of its own."""
    from freehold.run.store.naming import adapted

    base = adapted(store, text)
    if continued and base.adapter is None:
        raise UsageError(
            f"--continue trains an adapter, and {text} names none", f"name one: {text}+./ADAPTER"
        )
    context = click.get_current_context(silent=True)
    source = context.get_parameter_source("rank") if context else None
    if continued and source is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("--continue keeps the rank of the adapter", "leave out --rank, or --continue")
    return base


def adapter_options(command: Command) -> Command:
    """Add what every adapter is trained with: rank, seed, threads, and whether to start anew."""
    command = click.option(
        "--fresh", is_flag=True, help="Discard the files of an interrupted run and start again."
    )(command)
    return setting_options(AdapterSettings, "rank", "seed", "threads")(command)


def chosen_settings(kind: Callable[..., SettingsType], options: Mapping[str, Any]) -> SettingsType:
    """Make a verb's settings of its options; products are in bfloat16 where this processor has them, unless said."""
    from freehold.adapt.training.trainee import half_helps

    half = half_helps() if options["half"] is None else options["half"]
    return kind(alpha=2.0 * options["rank"], **{**options, "half": half})


def train(
    settings: Settings,
    verb: str,
    out: Path,
    run: Callable[[StatusLine], Mapping[str, Any]],
    rows: Callable[[Mapping[str, Any]], list[tuple[str, str]]],
    *,
    first: str,
    as_json: bool,
) -> None:
    """Run a training under a line of progress; print its receipt, as JSON or as `rows`. `first`: a model's name."""
    note(settings.home, verb, out)
    with StatusLine(result_of(out)) as line:
        line.show(f"before the first step: reading {first}")
        record = run(line)
    if as_json:
        click.echo(json.dumps(record))
    else:
        warned = [("warning" if not i else "", text) for i, text in enumerate(record["warnings"])]
        chain = [("chain", chain_text(record, out))] if record["chain"] else []
        pairs([("adapter", str(out)), *chain, *rows(record), *warned, ("receipt", str(out / "receipt.json"))])


def chain_text(record: Mapping[str, Any], out: Path) -> str:
    """Return the stages of a result in one line, the oldest first."""
    names = [Path(str(each["path"])).name for each in record["chain"]]
    own = f"{out.name} (rank {record['adapter']['rank']}, contains the ones before)"
    return " -> ".join([*names, own])


def still_known_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a training left of what was known before."""
    control, text = record["control"], record["text_loss"]
    return [
        ("facts", f"{control['after']} of {control['facts']} known ({control['before']} before)"),
        (
            "other text",
            f"{text['after']:.3f} nats per token ({text['before']:.3f} before, {text['rise']:+.3f})",
        ),
    ]


def served_row(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return how far the engine that serves an adapter is from what trained it."""
    return (
        "as served",
        f"engine and trainer differ by {record['mismatch']['mean_absolute']:.4f} nats per token",
    )


def time_row(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return the processor time of a training and of its steps."""
    return "time", f"{record['cpu_seconds']:.0f} CPU-s, {record['speed']['step_cpu_seconds']:.1f} per step"
