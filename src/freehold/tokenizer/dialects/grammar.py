"""Writes what a dialect's calls look like as a Lark grammar, in llguidance's reading of Lark.

A call begins as the family's templates write it, names a tool that was given, and has arguments by that tool's own
schema. Knows forms and schemas; knows no tokens but how a mark is spelled, which its caller says.
Path: Holds.constraint -> lark, lark_of_bare -> Format
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from freehold.tokenizer.dialects.schema import closed, types_of
from freehold.types import Tool

Spell = Callable[[str], str]  # a text as a Lark expression: its control tokens by their ids

# JSON as models write it: one blank behind colons and commas. Free blanks cost small models their way.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Of an object that a model began by itself, in its own style: as many blanks as indented JSON needs.
_BLANKS = r"[ \n\t]{0,40}"
_FREE_STYLE = {"whitespace_pattern": r"[ \n\t]{1,40}"}


@dataclass(frozen=True, slots=True)
class Form:
    """The texts around a call's name and arguments, as a family's templates write them."""

    head: str
    middle: str
    tail: str
    before: str = ""  # once, before the first call
    between: str | None = None  # None: one call is all
    after: str = ""  # once, behind the last call
    arguments: Literal["json", "xml"] = "json"


def lark(form: Form, tools: Sequence[Tool], spell: Spell, *, many: bool, opened: str = "") -> str:
    """Return the grammar of calls of `tools`. `opened`: the mark that was written already."""
    first = form.before + form.head
    if not first.startswith(opened):
        raise ValueError(f"{opened!r} does not open a call")  # our own invariant
    rest = first[len(opened) :]
    repeated = f" (between {spell(form.head)} call)*" if many and form.between is not None else ""
    behind = _spelled(spell, form.after)
    if repeated and not form.after and (form.between or "").isspace():
        behind = f"between? {behind}"  # a model that went on to the next line may still end
    lines = [f"start: {_spelled(spell, rest)} call{repeated} {behind}"]
    if repeated:
        lines.append(f"between: {_spelled(spell, form.between or '')}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        parts = [spell(tool.name + form.middle), f"arguments_{i}", _spelled(spell, form.tail)]
        lines.append(f"call_{i}: {' '.join(filter(None, parts))}")
        lines += (
            _xml(i, tool) if form.arguments == "xml" else [f"arguments_{i}: %json {_json(tool.parameters)}"]
        )
    return "\n".join(lines) + "\n"


def lark_of_bare(tools: Sequence[Tool]) -> str:
    """Return the grammar of a call without marks from the tool's name on, whatever blanks it is laid out with."""
    lines = ["start: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        name = json.dumps(f'"{tool.name}"', ensure_ascii=False)
        lines.append(f"call_{i}: {name} key arguments_{i} close")
        lines.append(f"arguments_{i}: %json {_json(tool.parameters, _FREE_STYLE)}")
    between = f'/{_BLANKS},{_BLANKS}"(arguments|parameters)"{_BLANKS}:{_BLANKS}/'
    return "\n".join([*lines, f"key: {between}", f"close: /{_BLANKS}\\}}/"]) + "\n"


def pattern_of_bare(tools: Sequence[Tool]) -> str:
    """Return a regular expression that finds a call without marks, begun so far that its arguments are due.

    Its match ends before the tool's name. An object that has a tool's name and then something else is none.
    """
    names = "|".join(re.escape(f'"{tool.name}"') for tool in tools)
    behind = rf'(?:{names}){_BLANKS},{_BLANKS}"(?:arguments|parameters)"{_BLANKS}:{_BLANKS}\{{'
    return rf'\n[ \t]*(?:```\w*{_BLANKS})?\{{{_BLANKS}"name"{_BLANKS}:{_BLANKS}(?={behind})'


def _spelled(spell: Spell, text: str) -> str:
    return spell(text) if text else '""'


def _json(schema: Mapping[str, object], style: Mapping[str, object] = _STYLE) -> str:
    whole: Any = closed(dict(schema) or {"type": "object"})
    return json.dumps({"x-guidance": style, "type": "object", **whole})


def _xml(index: int, tool: Tool) -> Iterator[str]:
    """Yield the rules of a tool's parameters as marked text, in the schema's order, required ones always."""
    properties = tool.parameters.get("properties")
    required = tool.parameters.get("required")
    names = list(properties) if isinstance(properties, Mapping) else []
    needed = required if isinstance(required, list) else []
    uses = [f"p_{index}_{i}" + ("" if name in needed else "?") for i, name in enumerate(names)]
    yield f"arguments_{index}: " + (" ".join(uses) or '""')
    for i, name in enumerate(names):
        schema = properties[name] if isinstance(properties, Mapping) else {}
        rule = f"p_{index}_{i}"
        yield f"{rule}: {json.dumps(f'<parameter={name}>' + chr(10))} {rule}_v"
        yield from _value(f"{rule}_v", schema)


def _value(rule: str, schema: Any) -> Iterator[str]:
    """Yield the rules of one value and its closing mark."""
    end = "\n</parameter>\n"
    choices = schema.get("enum") if isinstance(schema, dict) else None
    types = types_of(schema)
    if types - {"string"} or not types:
        whole = closed(schema) if isinstance(schema, dict) and schema else {}
        yield f"{rule}: {rule}_j {json.dumps(end)}"
        yield f"{rule}_j: %json {json.dumps({'x-guidance': _STYLE, **whole})}"
    elif isinstance(choices, list) and choices:
        texts = " | ".join(json.dumps(str(c), ensure_ascii=False) for c in choices)
        yield f"{rule}: ({texts}) {json.dumps(end)}"
    else:
        yield f"{rule}[suffix={json.dumps(end)}]: /(?s:.*)/"
