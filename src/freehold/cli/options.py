"""The sampling options, once: as command-line options of `run` and as `/set NAME VALUE` in a chat.

Knows names, ranges and help texts, and how a format is given; knows no model.
Path: run.command or chat.Chat -> chosen, read_format -> SamplingParams, Format
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from freehold.cli.helping import in_words
from freehold.config import nearest
from freehold.errors import UsageError
from freehold.types import MAX_FORMAT_CHARS, Format, SamplingParams, as_format

MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting of an answer: the option's name, the SamplingParams field (or chat setting), its range."""

    name: str
    field: str
    type: click.ParamType
    help: str


SAMPLING = (
    Knob(
        "temperature",
        "temperature",
        click.FloatRange(0, 100),
        "Randomness; 0 always takes the most probable token.",
    ),
    Knob("top-k", "top_k", click.IntRange(0), "Sample from the K most probable tokens; 0: from all."),
    Knob(
        "top-p",
        "top_p",
        click.FloatRange(0, 1, min_open=True),
        "Sample from the most probable tokens whose sum reaches P.",
    ),
    Knob("min-p", "min_p", click.FloatRange(0, 1), "Drop tokens below P times the highest probability."),
    Knob(
        "typical", "typical_p", click.FloatRange(0, 1, min_open=True), "Locally typical sampling with mass P."
    ),
    Knob(
        "repetition-penalty",
        "repetition_penalty",
        click.FloatRange(0, 100, min_open=True),
        "Divide the logits of repeated tokens.",
    ),
    Knob(
        "presence-penalty",
        "presence_penalty",
        click.FloatRange(-100, 100),
        "Subtract from the logits of repeated tokens.",
    ),
    Knob(
        "frequency-penalty",
        "frequency_penalty",
        click.FloatRange(-100, 100),
        "Subtract from a logit per occurrence.",
    ),
    Knob(
        "seed",
        "seed",
        click.IntRange(0, MAX_SEED),
        "Seed of the sampler; the same seed gives the same answer.",
    ),
)
OTHER = (
    Knob("max-tokens", "max_tokens", click.IntRange(1), "Stop after this many tokens."),
    Knob(
        "overflow",
        "overflow",
        click.Choice(["error", "drop-oldest"]),
        "When the context is full: fail, or drop the oldest messages.",
    ),
    Knob("stop", "stop", click.STRING, "End the answer before this text."),
)


def sampling_options(command: Callable) -> Callable:
    """Add every sampling option to a click command."""
    command = click.option(
        "--logit-bias", multiple=True, metavar="ID=B", help="Add B to the logit of token ID; repeatable."
    )(command)
    for knob in reversed(SAMPLING):
        command = click.option(f"--{knob.name}", knob.field, type=knob.type, help=knob.help)(command)
    return command


def chosen(base: SamplingParams, values: Mapping[str, Any], bias: Sequence[str] = ()) -> SamplingParams:
    """Return `base` with the given fields (those that are not None)."""
    fields = {k.field: values[k.field] for k in SAMPLING if values.get(k.field) is not None}
    if bias:
        fields["logit_bias"] = dict(map(_bias, bias))
    return replace(base, **fields)


def parse_setting(name: str, text: str) -> tuple[Knob, Any]:
    """Read `/set NAME VALUE`; raise UsageError with the nearest name or the range."""
    knobs = {k.name: k for k in (*SAMPLING, *OTHER)}
    name = name.replace("_", "-")
    if name not in knobs:
        near = nearest(name, list(knobs))
        hint = f"did you mean {near}?" if near else f"settings: {', '.join(knobs)}"
        raise UsageError(f"{name!r} is not a setting", hint)
    try:
        return knobs[name], knobs[name].type.convert(text, None, None)
    except click.BadParameter as e:
        problem = in_words(e.message.rstrip("."), knobs[name].type) if text else "a value is missing"
        raise UsageError(f"{name}: {problem}", "/set lists the settings") from e


def read_format(name: str | None) -> Format | None:
    """Read --format: `json`, or a file with a JSON schema, or a .lark file with a grammar."""
    if name is None or name == "json":
        return as_format(name)
    path = Path(name)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_FORMAT_CHARS + 1)
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"--format {name}: {why}", "give json, or a file with a JSON schema or a Lark grammar (.lark)"
        ) from e
    if len(text) > MAX_FORMAT_CHARS:
        raise UsageError(f"--format {name} has more than {MAX_FORMAT_CHARS:,} characters")
    return Format("lark" if path.suffix == ".lark" else "json_schema", text)


def _bias(text: str) -> tuple[int, float]:
    id, _, value = text.partition("=")
    try:
        bias = float(value)
        if not -1000 <= bias <= 1000:
            raise ValueError
        return int(id), bias
    except ValueError:
        raise UsageError(
            f"--logit-bias {text!r} is not ID=B", "for example 1234=-5, B within -1000..1000"
        ) from None
