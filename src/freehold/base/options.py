"""Options, declared once: a field of a settings class says its default, its range, its help and its name.

The command line makes its options of these fields (cli/options.py), and a settings class refuses the same values in the
same words where Python makes it (`check`). Knows dataclasses; knows no verb and no settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from freehold.base.errors import UsageError

MANY = 10**15  # a limit above this is none that a reader needs
Value = TypeVar("Value")
# How a value is written on a command line; list: an option that is repeated, whose values are joined by commas.
Form = Literal["", "text", "list", "amount", "time", "never", "bytes", "size", "billions", "path", "file"]
_KEY = "option"


class Declared(TypedDict, total=False):
    """What `option` takes besides a default and a help, as FieldOption says."""

    name: str
    off: str
    least: float
    above: float
    most: float
    below: float
    choices: tuple[str, ...]
    form: Form
    metavar: str
    shown: bool


@dataclass(frozen=True, slots=True)
class FieldOption:
    """What a field declares. `least` and `most` belong to the range, `above` and `below` do not."""

    help: str
    name: str = ""  # on the command line, without its dashes; "": as the field's
    off: str = ""  # of a flag: the name that turns it off
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    form: Form = ""
    metavar: str | None = None
    shown: bool = True  # whether help has the default
    # From the field itself; options_of fills them.
    field: str = ""
    kind: str = ""  # its type as it is written
    default: Any = None
    required: bool = False

    def check(self, value: object) -> None:
        """Raise UsageError for a value that the command line refuses."""
        if value is None and self.kind.endswith("None"):
            return
        if (
            type(value) is type(self.default) and value == self.default
        ):  # a choice that is left open may be outside
            return
        kind = self.kind.removesuffix(" | None")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.choices and value not in self.choices:
            problem = f"{value!r} is not one of {', '.join(map(repr, self.choices))}"
        elif kind == "int" and not (number and isinstance(value, int)):
            problem = f"{value!r} is not a valid integer"
        elif kind == "float" and not number:
            problem = f"{value!r} is not a valid float"
        elif self._range() and isinstance(value, float) and not math.isfinite(value):
            problem = f"{value!r} is not a finite number"
        elif isinstance(value, int | float) and not self.allows(value):
            problem = f"{value!r} is outside the range: {self._range()}"
        else:
            return
        hint = "" if self.default is None else f"the default is {self.default!r}"
        raise UsageError(f"{self.field}: {problem}", hint, field=self.field)

    def allows(self, value: float) -> bool:
        """Return whether a number is in the range."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def _range(self) -> str:
        low = self.least if self.above is None else self.above
        high = self.most if self.below is None else self.below
        return limits(low, high, above=self.above is not None, below=self.below is not None)


def option(default: Value | Any = MISSING, help: str = "", **declared: Unpack[Declared]) -> Value:
    """Return a dataclass's field that is an option; without a default it is required."""
    return field(default=default, metadata={_KEY: FieldOption(help, **declared)})


@cache
def options_of(settings: type) -> Mapping[str, FieldOption]:
    """Return what the fields of a settings class declare, by their names."""
    declared: dict[str, FieldOption] = {}
    for each in fields(settings):
        if _KEY in each.metadata:
            required = each.default is MISSING
            default = None if required else each.default
            declared[each.name] = replace(
                each.metadata[_KEY],
                field=each.name,
                kind=str(each.type),
                default=default,
                required=required,
            )
    return declared


def check(settings: object) -> None:
    """Raise UsageError for the first field whose value its option refuses."""
    for declared in options_of(type(settings)).values():
        declared.check(getattr(settings, declared.field))


def limits(low: float | None, high: float | None, *, above: bool = False, below: bool = False) -> str:
    """Return a range in words: 0 to 100; above 0, at most 1; 8 or more. `above`, `below`: the limit is left out."""
    least = "" if low is None else f"above {low:,.15g}" if above else f"{low:,.15g} or more"
    if high is None or high > MANY:
        return least
    if low is not None and not above and not below:
        return f"{low:,.15g} to {high:,.15g}"
    most = f"{'below' if below else 'at most'} {high:,.15g}"
    return f"{least}, {most}".removeprefix(", ")


_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def size_of(text: str) -> int:
    """Return the bytes of 400MB, 1.2GB, 900MiB or 1200000000; 0 for a text that is none of these."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,6})?)\s*([KMG]I?)?B?", text.strip().upper())
    return int(float(match[1]) * _BYTES[match[2] or ""]) if match else 0
