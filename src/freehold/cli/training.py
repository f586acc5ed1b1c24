"""Options and rows that the verbs share which train an adapter. Path: finetune, align, reinforce, distil -> here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from freehold.cli.options import MAX_SEED
from freehold.cli.shared import FiniteRange

LINES = click.Path(path_type=Path, exists=True, dir_okay=False)  # a file of JSON lines
FOLDER = click.Path(path_type=Path, file_okay=False)
Command = TypeVar("Command", bound=Callable[..., Any])
SettingsType = TypeVar("SettingsType")

out_option = click.option("-o", "--out", required=True, type=FOLDER, help="The folder to create.")
max_length_option = click.option(
    "--max-length",
    type=click.IntRange(8),
    default=1024,
    show_default=True,
    help="Maximum tokens of a prompt and its answer together.",
)
half_option = click.option(
    "--half/--no-half",
    default=None,
    help="Multiply in bfloat16, which is faster on processors with AMX and on AMD's with "
    "AVX512_BF16, and the default there.",
)
_ALWAYS = (
    click.option(
        "--rank", type=click.IntRange(1, 512), default=16, show_default=True, help="Rank of the adapter."
    ),
    click.option(
        "--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True, help="Seed of all draws."
    ),
    click.option("--threads", type=click.IntRange(1), help="Compute threads; default: the physical cores."),
    click.option("--fresh", is_flag=True, help="Discard the files of an interrupted run and start again."),
)


def adapter_options(command: Command) -> Command:
    """Add what every adapter is trained with: rank, seed, threads, and whether to start anew."""
    for option in reversed(_ALWAYS):
        command = option(command)
    return command


def rate_option(default: float, *, zero: str = "") -> Callable[[Command], Command]:
    """Return --lr. `zero`: what its help says of 0, which is refused without."""
    return click.option(
        "--lr",
        "rate",
        type=FiniteRange(0, 1, min_open=not zero),
        default=default,
        show_default=True,
        help="Learning rate" + (f"; {zero}." if zero else "."),
    )


def epochs_option(default: int, over: str) -> Callable[[Command], Command]:
    """Return --epochs, passes over `over`."""
    return click.option(
        "--epochs",
        type=click.IntRange(1, 100),
        default=default,
        show_default=True,
        help=f"Passes over {over}.",
    )


def batch_option(of: str) -> Callable[[Command], Command]:
    """Return --batch, how many `of` a step learns from."""
    return click.option(
        "--batch", type=click.IntRange(1, 256), default=8, show_default=True, help=f"{of} a step."
    )


def replay_option(also: str = "") -> Callable[[Command], Command]:
    """Return --replay. `also`: what its help adds for a verb."""
    return click.option(
        "--replay",
        type=click.IntRange(0, 64),
        default=2,
        show_default=True,
        help="Rows of MODEL's own text rehearsed per step, to reduce forgetting"
        + (f"; {also}." if also else "."),
    )


def chosen_settings(kind: Callable[..., SettingsType], options: Mapping[str, Any]) -> SettingsType:
    """Make a verb's settings of its options; products are in bfloat16 where this processor has them, unless said."""
    from freehold.adapt.training.trainee import half_helps

    half = half_helps() if options["half"] is None else options["half"]
    return kind(alpha=2.0 * options["rank"], **{**options, "half": half})


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
