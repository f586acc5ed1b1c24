"""The contract of a dialect: its marks, the parser of its calls, and the grammar that writes them.

A dialect is recognised by a template's source, never by a model's name (detect.py). Its three sides belong
together: a template renders calls into history, a grammar holds the model to them, `read` takes them out again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.source import Reading, TextSource, dumped, loaded
from freehold.types import Tool

MAX_NAME = 256  # characters; a longer text is not a tool's name


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it was read: the tool's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


Calls = list[Call] | None  # None: the text only looked like calls
Offer = Mapping[str, Tool]  # the tools of a request, by name


@dataclass(frozen=True, slots=True)
class Opening:
    """A text that may begin calls. `at_line`: only as the first thing of a line, for marks that prose has too."""

    mark: str
    at_line: bool = False


Read = Callable[[TextSource, str, Offer], Reading[Calls]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family calls tools. `read` begins after an opening and ends after the calls."""

    name: str
    openings: tuple[Opening, ...]
    read: Read
    form: CallForm  # how a grammar writes calls
    marks: tuple[str, ...] = ()  # further texts that may be control tokens and must reach `read`
    short_ids: bool = False  # ids of nine letters and digits, which the family's templates insist on
    # For templates that show no tools: what the system text says of them, and whether history is text too.
    preamble: Callable[[Sequence[Tool]], str] | None = None
    as_text: bool = False
    bare: CallForm | None = None  # how small models of the family write one without its marks
    in_system: bool = False  # templates read tools from the system message, as the text of a list
    channels: bool = False  # the whole answer is in channels (harmony.py)


def call_of(value: Any, named: str = "name") -> Call | None:
    """Return the call that a JSON object spells, or None. `named`: the key of the tool's name.

    A model may write its arguments as the text of an object, as OpenAI's wire does.
    """
    if not isinstance(value, dict):
        return None
    name = value.get(named)
    raw = next((value[key] for key in ("arguments", "parameters") if key in value), {})
    arguments = loaded(raw) if isinstance(raw, str) else raw
    if not is_name(name) or not isinstance(arguments, dict):
        return None
    return Call(name, arguments_text(arguments, raw if isinstance(raw, str) else None))


def calls_of(values: Any, named: str = "name") -> Calls:
    """Return the calls that a JSON list spells; None where one of them is none."""
    calls = [call_of(value, named) for value in values] if isinstance(values, list) else []
    parsed = [call for call in calls if call is not None]
    return parsed if parsed and len(parsed) == len(calls) else None


def listed(tools: Sequence[Tool]) -> str:
    """Return tools as lines of JSON, for a system text."""
    shown = ({"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in tools)
    return "\n".join(map(dumped, shown))


def arguments_text(arguments: dict[str, Any], raw: str | None = None) -> str:
    """Return the JSON text of `arguments`: `raw` as the model wrote it where that is strict JSON."""
    if raw is not None:
        try:
            json.loads(raw, parse_constant=_refuse)
            return raw
        except (ValueError, RecursionError):
            pass
    return dumped(_finite(arguments))


def is_name(name: Any) -> TypeGuard[str]:
    """Tell whether `name` can be a tool's."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and not set(name) & set(' \t\r\n"<>{}[]')


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot write: one beyond a double by the largest, no number by its text."""
    if isinstance(value, float) and value != value:
        return str(value)
    if isinstance(value, float):
        return max(-sys.float_info.max, min(sys.float_info.max, value))
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
