"""Calls whose keys and values are between marks: GLM, DeepSeek V3.2, MiniMax-M2, Seed-OSS and Hunyuan.

A family is a row of texts; from it follow the reader and the grammar. Blanks between marks are free when read and as
the row has them when written. A value is raw text, so its type comes from the tool's schema (rawvalues.py); it may hold
its own closing mark, and ends where a mark follows that can follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from freehold.tokenizer.dialects.contract import Call, Calls, Dialect, Offer, Opening, is_name
from freehold.tokenizer.dialects.grammar import CallForm, Spell
from freehold.tokenizer.dialects.pythonic import BROKEN, value_of
from freehold.tokenizer.dialects.rawvalues import members, value_rules
from freehold.tokenizer.dialects.schema import kinds_of, read_value, typed
from freehold.tokenizer.dialects.source import Reading, TextSource, dumped

_NAME = re.compile(r"""[^\s"<>{}\[\]]*""")


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts of one family, with the blanks that its templates write between them."""

    call: str  # before a tool's name
    named: str  # after it
    key: str  # before a key
    value: str  # between a key and its value
    value_end: str
    call_end: str
    section: str = ""  # before the first call, and after the last; empty where each call has its own mark
    section_end: str = ""
    between: str | None = None
    json_value: str = (
        ""  # in place of `value` where the value is not a string, if the family tells the two apart
    )


def _solid(text: str) -> list[str]:
    return text.split()


def dialect(name: str, marks: Marks) -> Dialect:
    """Return the dialect of a family."""
    form = CallForm(
        marks.call,
        marks.named,
        marks.call_end,
        before=marks.section,
        between=marks.between,
        after=marks.section_end,
        arguments=partial(marked_arguments, marks),
    )
    texts = (*vars_of(marks), marks.section_end)
    opening = _solid(marks.section + marks.call)[0]
    inner = {piece for text in texts for piece in _solid(text)} - {opening}
    return Dialect(name, (Opening(opening),), partial(read, marks), marks=tuple(sorted(inner)), form=form)


def vars_of(marks: Marks) -> tuple[str, ...]:
    """Return the texts within calls."""
    return (
        marks.section,
        marks.call,
        marks.named,
        marks.key,
        marks.value,
        marks.json_value,
        marks.value_end,
        marks.call_end,
    )


# --- reading ----------------------------------------------------------------------------------------------


def read(marks: Marks, source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read one call, or all calls of a section."""
    begun = _solid(marks.section + marks.call)
    if not (yield from _all(source, begun[1:])):
        return None
    call = yield from _call(marks, source, offer)
    if call is None or not marks.section:
        return None if call is None else [call]
    calls = [call]
    while (yield from _all(source, _solid(marks.call))):
        call = yield from _call(marks, source, offer)
        if call is None:
            return None
        calls.append(call)
    for piece in _solid(marks.section_end):
        yield from source.optional(piece)
    return calls


def _all(source: TextSource, pieces: list[str]) -> Reading[bool]:
    """Read marks with blanks before each; nothing where one is missing."""
    begin = source.at
    for piece in pieces:
        yield from source.space()
        if not (yield from source.literal(piece)):
            source.at = begin
            return False
    return True


def _call(marks: Marks, source: TextSource, offer: Offer) -> Reading[Call | None]:
    yield from source.space()
    name = yield from source.word(_NAME)
    if not is_name(name) or not (yield from _all(source, _solid(marks.named))):
        return None
    schema = offer[name].parameters if name in offer else {}
    arguments: dict[str, Any] = {}
    while (yield from _all(source, _solid(marks.key))):
        pair = yield from _pair(marks, source, schema)
        if pair is None:
            return None
        arguments[pair[0]] = pair[1]
    return Call(name, dumped(arguments)) if (yield from _all(source, _solid(marks.call_end))) else None


def _pair(marks: Marks, source: TextSource, schema: Mapping[str, object]) -> Reading[tuple[str, Any] | None]:
    kinds = (marks.value, marks.json_value) if marks.json_value else (marks.value,)
    first = [_solid(kind) for kind in kinds]
    key, mark = yield from source.until(first[0][0], "\n")
    if mark != first[0][0]:
        return None
    plain = yield from _all(source, first[0][1:])
    if not plain and not (marks.json_value and (yield from _all(source, first[1][1:]))):
        return None
    nested = not plain if marks.json_value else bool(kinds_of(key, schema) & {"object", "array"})
    text = yield from _value(marks, source, nested=nested)
    if text is None:
        return None
    if marks.json_value:
        return key, text if plain else read_value(text.strip())
    value = typed(text, key, schema)
    if isinstance(value, str) and nested and "string" not in kinds_of(key, schema):  # as Python prints it
        read = value_of(text)
        value = value if read is BROKEN else read
    return key, value


def _value(marks: Marks, source: TextSource, *, nested: bool) -> Reading[str | None]:
    """Read a value and its closing mark, but for the line end on each side that the family writes.

    `nested`: it may be an object or a list, whose own texts may hold any mark.
    """
    start, (end,) = source.at, _solid(marks.value_end)
    if nested:
        yield from source.space()
        raw = yield from source.json()
        if raw is not None and (yield from _all(source, [end])):
            return raw
        source.at = start
    while True:
        _, mark = yield from source.until(end)
        if not mark:
            return None
        at = source.at
        yield from source.space()
        followed = yield from source.literal(_solid(marks.key)[0], _solid(marks.call_end)[0])
        source.at = at
        if followed:
            break
    value = source.text[start : at - len(end)]
    value = value.removeprefix("\n") if marks.value.endswith("\n") else value
    return value.removesuffix("\n") if marks.value_end.startswith("\n") else value


# --- writing ----------------------------------------------------------------------------------------------


def marked_arguments(
    marks: Marks, rule: str, parameters: Mapping[str, object], spell: Spell
) -> Iterator[str]:
    """Yield the rules of arguments as marked text, in the schema's order, required ones always."""
    properties = members(parameters)
    uses = [f"{rule}_{i}" + ("" if needed else "?") for i, (_, _, needed) in enumerate(properties)]
    yield f"{rule}: " + (" ".join(uses) or '""')
    for i, (name, schema, _) in enumerate(properties):
        value, heads = f"{rule}_{i}", (marks.value, marks.json_value or marks.value)
        begins = [spell(marks.key + name + head) for head in heads]
        ends = (marks.value_end, *_solid(marks.value_end))
        yield from value_rules(value, schema, parameters, begins, ends, spell, apart=bool(marks.json_value))


_BAR = "｜"
_GLM = Marks(
    "<tool_call>",
    "\n",
    "<arg_key>",
    "</arg_key>\n<arg_value>",
    "</arg_value>\n",
    "</tool_call>",
    between="\n",
)
GLM = dialect("glm", _GLM)
GLM_TIGHT = dialect(
    "glm-4.7",
    Marks(
        "<tool_call>", "", "<arg_key>", "</arg_key><arg_value>", "</arg_value>", "</tool_call>", between=""
    ),
)
MINIMAX = dialect(
    "minimax",
    Marks(
        '<invoke name="',
        '">\n',
        '<parameter name="',
        '">',
        "</parameter>\n",
        "</invoke>\n",
        section="<minimax:tool_call>\n",
        section_end="</minimax:tool_call>",
        between="",
    ),
)
SEED = dialect(
    "seed",
    Marks(
        "<seed:tool_call>\n<function=",
        ">\n",
        "<parameter=",
        ">",
        "</parameter>\n",
        "</function>\n</seed:tool_call>",
        between="\n",
    ),
)


def _dsml(section: str) -> Dialect:
    mark = f"{_BAR}DSML{_BAR}"
    return dialect(
        f"dsml-{section.replace('_', '-')}",
        Marks(
            f'<{mark}invoke name="',
            '">\n',
            f'<{mark}parameter name="',
            '" string="true">',
            f"</{mark}parameter>\n",
            f"</{mark}invoke>\n",
            section=f"<{mark}{section}>\n",
            section_end=f"</{mark}{section}>",
            between="",
            json_value='" string="false">',
        ),
    )


def _hunyuan(suffix: str) -> Dialect:
    def tag(name: str) -> str:
        return f"<{name}{suffix}>"

    return dialect(
        f"hunyuan{suffix.replace(':', '-')}",
        Marks(
            tag("tool_call"),
            tag("tool_sep") + "\n",
            tag("arg_key"),
            f"{tag('/arg_key')}\n{tag('arg_value')}",
            tag("/arg_value") + "\n",
            tag("/tool_call") + "\n",
            section=tag("tool_calls") + "\n",
            section_end=tag("/tool_calls"),
            between="",
        ),
    )


DSML, DSML_V4 = _dsml("function_calls"), _dsml("tool_calls")
HUNYUAN, HUNYUAN_OPEN = _hunyuan(""), _hunyuan(":opensource")
