"""Writes a dialect's calls as a Lark grammar, in llguidance's variant of Lark.

A call begins as the family's templates write it, names a tool that was given, and has arguments by that tool's own
schema. Knows forms and schemas; knows no tokens but how a mark is spelled, which its caller says.
Path: ConstraintBuilder.constraint -> lark, lark_of_bare -> Format
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.tokenizer.dialects.schema import BLANKS, closed
from freehold.types import Tool

Spell = Callable[[str], str]  # a text as a Lark expression: its control tokens by their ids
# (rule, a tool's schema, spell): its rules
Arguments = Callable[[str, Mapping[str, object], Spell], Iterable[str]]

# JSON as models write it: one blank after colons and commas. Free blanks cost small models their way.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Of an object that a model began by itself, in its own style: as many blanks as indented JSON needs.
_BLANKS = f"(?:{BLANKS})?"
_FREE_STYLE = {"whitespace_pattern": BLANKS}
_TOKEN = re.compile(r"<\[\d+\]>")


def json_arguments(rule: str, parameters: Mapping[str, object], spell: Spell) -> list[str]:
    """Return the rule of arguments that are a JSON object."""
    return [f"{rule}: {_json(parameters)}"]


@dataclass(frozen=True, slots=True)
class CallForm:
    """The texts around a call's name and arguments, as a family's templates write them."""

    head: str
    middle: str
    tail: str
    before: str = ""  # once, before the first call
    between: str | None = None  # None: one call is all
    after: str = ""  # once, after the last call
    numbered: str = ""  # a Lark expression of the text between a name and `middle`
    arguments: Arguments = json_arguments
    # Thinking that may come before all, as messages: how one begins, what it has none of but at its end (the first of
    # these), and what follows it.
    thought: tuple[str, tuple[str, ...], str] | None = None


def lark(form: CallForm, tools: Sequence[Tool], spell: Spell, *, many: bool, opened: str = "") -> str:
    """Return the grammar of calls of `tools`. `opened`: the mark that was written already."""
    first = form.before + form.head
    if not first.startswith(opened):
        raise ValueError(f"{opened!r} does not open a call")  # our own invariant
    rest = first[len(opened) :]
    repeated = f" (between {spell(form.head)} call)*" if many and form.between is not None else ""
    behind = _spelled(spell, form.after)
    if repeated and not form.after and (form.between or "").isspace():
        behind = f"between? {behind}"  # a model that continued to the next line may still end
    thought = "thought* " if form.thought and not opened else ""
    lines = [f"start: {thought}{_spelled(spell, rest)} call{repeated} {behind}"]
    if form.thought and thought:
        head, marks, follows = form.thought
        lines.append(f"thought: {spell(head)} thinking {spell(follows)}")
        lines += text_until("thinking", marks, spell)
    if repeated:
        lines.append(f"between: {_spelled(spell, form.between or '')}")
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        middle = [spell(tool.name + form.middle)]
        if form.numbered:
            middle = [spell(tool.name), form.numbered, spell(form.middle)]
        parts = [*middle, f"arguments_{i}", _spelled(spell, form.tail)]
        lines.append(f"call_{i}: {' '.join(filter(None, parts))}")
        lines += form.arguments(f"arguments_{i}", tool.parameters, spell)
    return "\n".join(lines) + "\n"


def lark_of_bare(tools: Sequence[Tool]) -> str:
    """Return the grammar of a call without marks from the tool's name on, whatever blanks it is laid out with."""
    lines = ["start: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        name = json.dumps(f'"{tool.name}"', ensure_ascii=False)
        lines.append(f"call_{i}: {name} key arguments_{i} close")
        lines.append(f"arguments_{i}: {_json(tool.parameters, _FREE_STYLE)}")
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


def _json(schema: Mapping[str, object], style: Mapping[str, object] = STYLE) -> str:
    return f"%json {json.dumps({'x-guidance': style, **whole(schema)})}"


def whole(parameters: Mapping[str, object]) -> dict[str, Any]:
    """Return the schema of a tool's arguments: of an object, and of no properties that a tool does not name."""
    return {**closed(dict(parameters)), "type": "object"}


def text_until(rule: str, marks: Sequence[str], spell: Spell, *also: str) -> list[str]:
    """Return `rule`, of a text and the first of `marks`: the text has none of them, and is of each terminal in `also`.

    A control token ends any terminal. What is none must end its own, or would be taken for more of the text.
    """
    free = "/(?s:.*)/"
    text = " & ".join([free, *(f"~({free} {json.dumps(mark)} {free})" for mark in marks), *also])
    end, terminal = spell(marks[0]), rule.upper()
    token = _TOKEN.search(end)
    if token is None:
        return [f"{rule}: {terminal}", f"{terminal}: ({text}) {end}"]
    before = end[: token.start()].strip()
    return [
        f"{rule}: {terminal} {end[token.start() :]}",
        f"{terminal}: " + (f"({text}) {before}" if before else text),
    ]


def bounded(schema: Mapping[str, Any]) -> list[str]:
    """Return the terminals of texts that keep to a string schema's pattern and lengths."""
    also = [_searched(schema["pattern"])] if "pattern" in schema else []
    if "minLength" in schema or "maxLength" in schema:
        most = int(schema["maxLength"]) if "maxLength" in schema else ""
        also.append(f"/(?s:.{{{int(schema.get('minLength', 0))},{most}}})/")
    return also


def _searched(pattern: str) -> str:
    """Return the terminal of texts in which `pattern` is found; what it anchors is the text's own beginning or end."""
    begun, ended = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = pattern[begun : len(pattern) - ended]
    spelled = re.sub(r"\\.|/", lambda part: r"\/" if part[0] == "/" else part[0], inner, flags=re.DOTALL)
    return f"/{'' if begun else '(?s:.*)'}(?:{spelled}){'' if ended else '(?s:.*)'}/"
