"""Writes values as raw text between marks: a string is itself, anything else is JSON.

What the rules admit is read back by schema.typed as a value that fits its schema; a schema for which that cannot be
promised is refused, never passed over. `format` is a remark, as JSON schema has it.
Path: grammar.lark -> CallForm.arguments -> value_rules
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from freehold.errors import UsageError
from freehold.tokenizer.dialects.grammar import STYLE, Spell, bounded, text_until
from freehold.tokenizer.dialects.schema import apart as nothing_fits_both
from freehold.tokenizer.dialects.schema import closed, implied, is_of, resolved, types_of

MAX_DEPTH = 32  # of choices within choices
LARGE = 1 << 62  # llguidance counts in 64 bits
_STRING = ("pattern", "minLength", "maxLength")
# What an object's own schema may say beside its properties; anything else that bounds it is refused.
_BOUNDS = {
    *("$ref", "allOf", "anyOf", "oneOf", "not", "if", "enum", "const", "minProperties", "maxProperties"),
    *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties"),
}
# Text that schema.typed would take for another type where a string is one of several.
_OTHER = r"/(?s:\s*(-?[0-9].*|[\[{\"].*|true|false|null|True|False|None)\s*)/"


def members(parameters: Mapping[str, object]) -> list[tuple[str, Any, bool]]:
    """Return (name, schema, whether it is required) of each property. Raises UsageError for other bounds."""
    if bounds := _BOUNDS & parameters.keys():
        raise UsageError(f"{min(bounds)!r} of all parameters cannot be kept in the model's own notation")
    properties, required = parameters.get("properties"), parameters.get("required")
    named = dict(properties) if isinstance(properties, Mapping) else {}
    needed = [str(name) for name in required] if isinstance(required, list) else []
    named |= {name: {} for name in needed if name not in named}
    return [(name, schema, name in needed) for name, schema in named.items()]


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
