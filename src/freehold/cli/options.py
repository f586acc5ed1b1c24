"""Options of the command line, made of what settings declare.

Knows how click writes a range, and how a format is given; knows no model. Ranges and helps: freehold/base/options.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from freehold.base.errors import UsageError
from freehold.base.options import FieldOption, options_of, size_of
from freehold.base.types import MAX_FORMAT_CHARS, Format, SamplingParams, as_format
from freehold.cli.shared import Amount, Billions, MemorySize, Seconds

Command = TypeVar("Command", bound=Callable[..., Any])
SAMPLING = tuple(options_of(SamplingParams))


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN and infinity: click finds NaN within every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class FileSize(click.ParamType):
    """A number of bytes: 400MB, 1.2GB, 900MiB or 1200000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        size = size_of(str(value))
        if not size:
            self.fail(f"{value!r} is not a size; write 400MB, 1.2GB or 900MiB", param, ctx)
        return size


def setting_options(settings: type, *names: str, unset: bool = False) -> Callable[[Command], Command]:
    """Return a decorator that adds the options which fields of a settings class declare: these, or all.

    `unset`: without their defaults, where a model has its own.
    """

    def add(command: Command) -> Command:
        for name in reversed(names or tuple(options_of(settings))):
            declared = options_of(settings)[name]
            default = None if unset else _default(declared)
            command = click.option(
                f"--{spelt(declared)}" + (f"/--{declared.off}" if declared.off else ""),
                name,
                type=click_type(declared),
                is_flag=declared.kind.startswith("bool"),
                multiple=declared.kind.startswith("tuple") or declared.form == "list",
                callback=_joined if declared.form == "list" else None,
                required=declared.required,
                default=default,
                show_default=declared.shown and not isinstance(default, bool) and default not in (None, ""),
                metavar=declared.metavar,
                help=declared.help,
            )(command)
        return command

    return add


def spelt(declared: FieldOption) -> str:
    """Return an option's name without its dashes."""
    return declared.name or declared.field.replace("_", "-")


def _joined(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> str:
    return ",".join(values)


def _default(declared: FieldOption) -> Any:
    default: Any = declared.default
    if declared.form == "time" and default is not None:
        unit = next(unit for unit, seconds in _UNITS.items() if default % seconds == 0)
        return f"{default / _UNITS[unit]:g}{unit}"
    none = default == () or (default == "" and (declared.choices or declared.form == "list"))
    return None if none else default


def click_type(declared: FieldOption) -> click.ParamType | None:
    """Return what reads an option's value; None for a flag."""
    kind = declared.kind.removesuffix(" | None")
    low = declared.least if declared.above is None else declared.above
    high = declared.most if declared.below is None else declared.below
    if declared.choices:
        return click.Choice(declared.choices)
    if declared.form:
        return _FORMS[declared.form](kind)
    if kind == "int":
        return click.IntRange(_whole(low), _whole(high))
    if kind == "float" and (low, high) == (None, None):
        return click.FLOAT
    if kind == "float":
        open_ends = {"min_open": declared.above is not None, "max_open": declared.below is not None}
        return FiniteRange(low, high, **open_ends)
    return None if kind == "bool" else click.STRING


def _whole(limit: float | None) -> int | None:
    return None if limit is None else int(limit)


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORMS: dict[str, Callable[[str], click.ParamType]] = {
    "text": lambda kind: click.STRING,
    "list": lambda kind: click.STRING,
    "amount": lambda kind: Amount(whole=kind == "int"),
    "time": lambda kind: Seconds(),
    "never": lambda kind: Seconds(never=True),
    "bytes": lambda kind: MemorySize(),
    "size": lambda kind: FileSize(),
    "billions": lambda kind: Billions(),
    "path": lambda kind: click.Path(path_type=Path),
    "file": lambda kind: click.Path(path_type=Path, exists=True, dir_okay=False),
}


def sampling_options(command: Callable) -> Callable:
    """Add every sampling option to a click command."""
    command = click.option(
        "--logit-bias", multiple=True, metavar="ID=B", help="Add B to the logit of token ID; repeatable."
    )(command)
    return setting_options(SamplingParams, unset=True)(command)


def chosen(base: SamplingParams, values: Mapping[str, Any], bias: Sequence[str] = ()) -> SamplingParams:
    """Return `base` with the given fields (those that are not None)."""
    fields = {name: values[name] for name in SAMPLING if values.get(name) is not None}
    if bias:
        fields["logit_bias"] = dict(map(_bias, bias))
    return replace(base, **fields)


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
