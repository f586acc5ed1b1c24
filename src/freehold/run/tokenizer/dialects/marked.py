"""Calls whose keys and values are between marks: GLM, DeepSeek V3.2, MiniMax-M2, Seed-OSS and Hunyuan.

A family is a row of texts; from it follow the reader and the grammar. Blanks between marks are free when read and as
the row has them when written. A value is raw text, so its type comes from the tool's schema; it may hold
its own closing mark, and ends where a mark follows that can follow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import combinations
from typing import Any

from freehold.base.errors import UsageError
from freehold.run.tokenizer.dialects.contract import (
    BROKEN,
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    Reading,
    TextSource,
    dumped,
    is_name,
)
from freehold.run.tokenizer.dialects.grammar import (
    STYLE,
    CallForm,
    Spell,
    bounded,
    closed,
    implied,
    is_of,
    kinds_of,
    members,
    read_value,
    resolved,
    text_until,
    typed,
    types_of,
)
from freehold.run.tokenizer.dialects.grammar import apart as nothing_fits_both
from freehold.run.tokenizer.dialects.pythonic import value_of

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
    json_value: str = ""  # in place of `value` where that is not a string, if the family tells the two apart


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
    opening = _solid(marks.section + marks.call)[0]
    inner = {piece for text in astuple(marks) if text for piece in _solid(text)} - {opening}
    return Dialect(name, (Opening(opening),), partial(read, marks), marks=tuple(sorted(inner)), form=form)


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
    value = yield from _before(source, end, _solid(marks.key)[0], _solid(marks.call_end)[0])
    if value is None:
        return None
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


def _before(source: TextSource, end: str, *followers: str) -> Reading[str | None]:
    """Read up to the first `end` that one of `followers` follows, and over it; return the text before it."""
    start = source.at
    while True:
        _, mark = yield from source.until(end)
        if not mark:
            return None
        at = source.at
        yield from source.space()
        followed = yield from source.literal(*followers)
        source.at = at
        if followed:
            return source.text[start : at - len(end)]


# --- writing: values as raw text between marks ------------------------------------------------------
# A string is itself, anything else is JSON. What the rules admit is read back by `typed` as a value that fits its
# schema; a schema for which that cannot be promised is refused, never passed over. `format` is a remark, as JSON
# schema has it.

MAX_DEPTH = 32  # of choices within choices
LARGE = 1 << 62  # llguidance counts in 64 bits
_STRING = ("pattern", "minLength", "maxLength")
# Text that `typed` would take for another type where a string is one of several.
_OTHER = r"/(?s:\s*(-?[0-9].*|[\[{\"].*|true|false|null|True|False|None)\s*)/"


def value_rules(
    rule: str,
    schema: Any,
    root: Mapping[str, object],
    begins: Sequence[str],
    ends: Sequence[str],
    spell: Spell,
    *,
    apart: bool,
) -> Iterator[str]:
    """Yield the rules of one value with the text before it and its closing mark.

    `begins`: the text before a string and before JSON; `apart`: whether the two differ. `ends`: the closing mark, then
    texts that a string must not contain. Raises UsageError.
    """
    texts, others = _parts(schema, root, 0)
    uses = []
    for i, text in enumerate(texts):
        uses.append(f"{begins[0]} {rule}_s{i}")
        if "const" in text:
            yield f"{rule}_s{i}: {_constant(text['const'], ends)} {spell(ends[0])}"
            continue
        also = [*bounded(text), *([f"~{_OTHER}"] if others and not apart else [])]
        yield from text_until(f"{rule}_s{i}", ends, spell, *also)
    defined = {name: root[name] for name in ("$defs", "definitions") if name in root}
    for i, other in enumerate(others):
        uses.append(f"{begins[1]} {rule}_j{i} {spell(ends[0])}")
        yield f"{rule}_j{i}: %json {json.dumps({'x-guidance': STYLE, **defined, **closed(other)})}"
    if not uses:
        raise UsageError(f"nothing fits {schema!r}")
    yield f"{rule}: " + " | ".join(uses)


def _constant(text: str, ends: Sequence[str]) -> str:
    if any(end in text for end in ends):
        raise UsageError(f"{text!r} cannot be spelled: it holds the mark that ends a value")
    return json.dumps(text, ensure_ascii=False)


def _parts(
    schema: Any, root: Mapping[str, object], depth: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the strings and the other values that fit `schema`, as alternatives."""
    schema = resolved(schema, root)
    if depth > MAX_DEPTH:
        raise UsageError(f"choices are more than {MAX_DEPTH} levels deep")
    if not isinstance(schema, Mapping):
        if schema is True:
            return [{}], []
        raise UsageError(f"nothing fits {schema!r}")
    for group in ("anyOf", "oneOf"):
        if group in schema:
            return _choice(schema, group, root, depth)
    if "enum" in schema or "const" in schema:
        return _constants(schema)
    kinds = set(types_of(schema, root=root) or implied(schema))
    if not kinds:
        return [{}], []
    texts = [{key: schema[key] for key in _STRING if key in schema}] if "string" in kinds else []
    if texts and {"allOf", "$ref", "not", "if"} & schema.keys():
        raise UsageError("a string with further conditions cannot be kept in the model's own notation")
    if not kinds - {"string"}:
        return texts, []
    rest = sorted(kinds - {"string"})
    kept = {key: value for key, value in schema.items() if key not in (*_STRING, "type")}
    if {"number", "integer"} & kinds:  # one beyond Python's range would be read as text
        kept = {"minimum": -LARGE, "maximum": LARGE, **kept}
    return texts, [{**kept, "type": rest[0] if len(rest) == 1 else rest}]


def _choice(
    schema: Mapping[str, Any], group: str, root: Mapping[str, object], depth: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    choices = [resolved(member, root) for member in schema[group]]
    beside = {
        key for key in schema if key not in (group, "description", "title", "default", "examples", "$defs")
    }
    if beside:
        raise UsageError(f"{min(beside)!r} beside {group!r} cannot be kept in the model's own notation")
    if group == "oneOf" and not all(nothing_fits_both(a, b) for a, b in combinations(choices, 2)):
        raise UsageError("one value may fit two of 'oneOf'", "use anyOf")
    parts = [_parts(member, root, depth + 1) for member in choices]
    return [text for texts, _ in parts for text in texts], [other for _, others in parts for other in others]


def _constants(schema: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    values = [schema["const"]] if "const" in schema else schema["enum"]
    kinds = frozenset(types_of({"type": schema["type"]})) if "type" in schema else None
    fitting = [value for value in values if kinds is None or is_of(value, kinds)]
    others = [value for value in fitting if not isinstance(value, str)]
    return [{"const": v} for v in fitting if isinstance(v, str)], [{"enum": others}] if others else []


# --- families ---------------------------------------------------------------------------------------

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


# --- Qwen3-Coder, Qwen3.5 and Nemotron 3 ------------------------------------------------------------
# <tool_call><function=NAME><parameter=KEY>value</parameter>...</function>.
# A value is raw text between line ends, so its type comes from the tool's schema: a string stays what it is,
# whatever it looks like. A value may hold the closing mark itself: it ends where a mark follows that can
# follow.

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


def read_xml(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read one call; models leave the outer mark out, so the inner one opens as well."""
    if opening == OPEN:
        yield from source.space()
        if not (yield from source.literal(FUNCTION)):
            return None
    name, _ = yield from source.until(">", "\n", "<")
    name = name.strip().strip('"')
    if not is_name(name):
        return None
    schema = offer[name].parameters if name in offer else {}
    arguments: dict[str, Any] = {}
    while True:
        yield from source.space()
        mark = yield from source.literal(PARAMETER, FUNCTION_END)
        if mark != PARAMETER:
            break
        key, end = yield from source.until(">", "\n", "<")
        value = (yield from _before(source, PARAMETER_END, PARAMETER, FUNCTION_END)) if end == ">" else None
        if value is None:
            return None
        key = key.strip().strip('"')
        arguments[key] = typed(value.removeprefix("\n").removesuffix("\n"), key, schema)
    if not mark:
        return None
    yield from source.optional(CLOSE)
    return [Call(name, dumped(arguments))]


_MARKS = Marks(
    f"{OPEN}\n{FUNCTION}",
    ">\n",
    PARAMETER,
    ">\n",
    f"\n{PARAMETER_END}\n",
    f"{FUNCTION_END}\n{CLOSE}",
    between="\n",
)
FORM = CallForm(
    _MARKS.call, _MARKS.named, _MARKS.call_end, between="\n", arguments=partial(marked_arguments, _MARKS)
)
XML = Dialect("xml", (Opening(OPEN), Opening(FUNCTION)), read_xml, marks=(CLOSE,), form=FORM)
