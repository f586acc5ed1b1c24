"""Prepares schemas for dialects: the types of raw text, and closing objects to other properties.

Knows JSON schema; knows no dialect and no grammar.
Path: grammar.lark, ConstraintBuilder.constraint -> closed; readers -> typed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from freehold.errors import UsageError

# Blanks between the parts of JSON. Without a bound a small model may write them until its context is full.
BLANKS = r"[ \n\t]{1,40}"
_AS_PYTHON = {"True": True, "False": False, "None": None}  # as templates that print values write them
_WORDS = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}


MAX_DEPTH = 32  # of schemas that are closed
# Beside these, `properties` are not all that an object may have.
_OTHERS = {
    *("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"),
    *("patternProperties", "unevaluatedProperties", "additionalProperties"),
}


_DEFINED = ("$defs", "definitions")
# Which values a keyword speaks of, where a schema names no type.
IMPLIED = {
    **dict.fromkeys(("properties", "required", "additionalProperties"), "object"),
    **dict.fromkeys(("items", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("pattern", "minLength", "maxLength"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
}


def closed(schema: Any, depth: int = 0) -> Any:
    """Return the schema with no properties allowed but the named ones, where it does not mention others.

    JSON schema allows any others; the author of a schema means the named ones, and a small model adds more without end.
    Parts of an `allOf` add up, so they stay open, and so do definitions where a schema has one.
    """
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return schema
    out: dict[str, Any] = dict(schema)
    defined = [name for name in _DEFINED if name in schema]
    for group in ("properties", *([] if defined and _has(schema, "allOf") else defined)):
        members = schema.get(group)
        if isinstance(members, dict):
            out[group] = {key: closed(value, depth + 1) for key, value in members.items()}
    for choice in ("anyOf", "oneOf"):
        if isinstance(members := schema.get(choice), list):
            out[choice] = [closed(value, depth + 1) for value in members]
    if isinstance(schema.get("items"), dict):
        out["items"] = closed(schema["items"], depth + 1)
    named, needed = schema.get("properties"), schema.get("required", [])
    others = _OTHERS & schema.keys() or not isinstance(needed, list)
    if isinstance(named, dict) and named and not others and all(str(name) in named for name in needed):
        out["additionalProperties"] = False
    return out


def _has(schema: object, name: str) -> bool:
    """Tell whether some object within `schema` has a member of this name."""
    level: list[Any] = [schema]
    while level:
        if any(isinstance(node, dict) and name in node for node in level):
            return True
        groups = [node.values() if isinstance(node, dict) else node for node in level]
        level = [child for group in groups for child in group if isinstance(child, dict | list)]
    return False


def typed(text: str, key: str, schema: Mapping[str, object]) -> Any:
    """Convert `text` to the type of parameter `key` in `schema`; text that does not convert stays text."""
    choices, wanted = _constants(_property(key, schema)), kinds_of(key, schema)
    if text in [choice for choice in choices if isinstance(choice, str)]:
        return text
    value = read_value(text.strip())
    if not isinstance(value, str) and any(type(value) is type(c) and value == c for c in choices):
        return value
    if not wanted or wanted == {"string"}:
        return text
    if value is None:
        return None if "null" in wanted or "string" not in wanted else text
    if "string" in wanted and not isinstance(value, (dict, list)):
        return value if is_of(value, wanted) and not isinstance(value, str) else text
    return value if is_of(value, wanted) else text


def kinds_of(key: str, schema: Mapping[str, object]) -> frozenset[str]:
    """Return the types of parameter `key` in `schema`; none where it does not say."""
    one = _property(key, schema)
    return types_of(one, root=schema) or frozenset(implied(one))


def _property(key: str, schema: Mapping[str, object]) -> Any:
    properties = schema.get("properties")
    return resolved(properties.get(key) if isinstance(properties, Mapping) else None, schema, strict=False)


def _constants(schema: object) -> list[Any]:
    """Return the values that `schema` and its choices name."""
    if not isinstance(schema, Mapping):
        return []
    named = schema.get("enum", [schema["const"]] if "const" in schema else [])
    constants = [*named] if isinstance(named, list) else []
    for group in ("anyOf", "oneOf"):
        members = schema.get(group)
        for member in members if isinstance(members, list) else ():
            constants += [member["const"]] if isinstance(member, Mapping) and "const" in member else []
    return constants


def target(ref: object, root: Mapping[str, object]) -> Any:
    """Return what a reference within `root` points to. Raises UsageError for one that leaves it or leads nowhere."""
    at: Any = root
    try:
        if not str(ref).startswith("#"):
            raise KeyError(ref)
        for part in unquote(str(ref).removeprefix("#")).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            at = at[int(key)] if isinstance(at, list) else at[key]
    except (LookupError, TypeError, ValueError):
        raise UsageError(f"$ref {ref!r} is not within the schema") from None
    return at


def resolved(schema: object, root: Mapping[str, object], *, strict: bool = True) -> Any:
    """Follow a reference that has only remarks beside it. Raises UsageError, or keeps the reference."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        if schema.keys() - {"$ref", "description", "title", "default", "examples"}:
            break
        try:
            schema = target(schema["$ref"], root)
        except UsageError:
            if strict:
                raise
            break
    return schema


def implied(schema: object) -> list[str]:
    """Return the types that the keywords of a schema speak of."""
    return sorted({IMPLIED[key] for key in schema if key in IMPLIED}) if isinstance(schema, Mapping) else []


def types_of(schema: object, depth: int = 0, root: Mapping[str, object] | None = None) -> frozenset[str]:
    """Return the types that `schema` allows, by name; none where it does not say. `root`: where references lead."""
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    named = schema.get("type")
    types = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    choices = schema.get("enum")
    if not types and isinstance(choices, list):
        types = {"string" if isinstance(c, str) else "null" if c is None else "number" for c in choices}
    referred = [resolved({"$ref": schema["$ref"]}, root, strict=False)] if root and "$ref" in schema else []
    for group in ("anyOf", "oneOf", "allOf"):
        members = schema.get(group)
        for member in [*(members if isinstance(members, list) else ()), *referred]:
            types |= types_of(member, depth + 1, root)
    return frozenset(name for name in types if isinstance(name, str))


def apart(one: object, other: object) -> bool:
    """Tell whether types, constants or a property that both need show that nothing fits both schemas."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    values = [[s["const"]] if "const" in s else s.get("enum") for s in (one, other)]
    if isinstance(values[0], list) and isinstance(values[1], list):
        return not any(value in values[1] for value in values[0])
    kinds = [types_of(s) | ({"integer"} if "number" in types_of(s) else set()) for s in (one, other)]
    if all(kinds) and values == [None, None] and not kinds[0] & kinds[1]:
        return True
    named = [s.get("properties", {}) for s in (one, other)]
    needed = set(one.get("required", [])) & set(other.get("required", []))
    return any(apart(named[0].get(name), named[1].get(name)) for name in needed)


def read_value(text: str) -> Any:
    """Return the value of JSON text, or of Python's words for true, false and null; the text itself otherwise."""
    if text in _AS_PYTHON:
        return _AS_PYTHON[text]
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def is_of(value: Any, wanted: frozenset[str]) -> bool:
    """Tell whether a value is of one of the types."""
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in wanted
    if isinstance(value, float) and value.is_integer() and "integer" in wanted:
        return True
    return any(isinstance(value, kind) for name, kind in _WORDS.items() if name in wanted)
