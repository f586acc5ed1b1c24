"""Gives raw text the type that a tool's schema asks for. Knows JSON schema's types; knows no dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_AS_PYTHON = {"True": True, "False": False, "None": None}  # as templates that print values write them
_WORDS = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}


def typed(text: str, key: str, schema: Mapping[str, object]) -> Any:
    """Return `text` as the parameter `key` of `schema` wants it; text that is of no such type stays text."""
    properties = schema.get("properties")
    wanted = types_of(properties.get(key)) if isinstance(properties, Mapping) else frozenset()
    if not wanted or wanted == {"string"}:
        return text
    value = _read(text.strip())
    if value is None:
        return None if "null" in wanted or "string" not in wanted else text
    if "string" in wanted and not isinstance(value, (dict, list)):
        return value if _is_of(value, wanted) and not isinstance(value, str) else text
    return value if _is_of(value, wanted) else text


def types_of(schema: object, depth: int = 0) -> frozenset[str]:
    """Return the types that `schema` allows, by name; none where it does not say."""
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    named = schema.get("type")
    found = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    choices = schema.get("enum")
    if not found and isinstance(choices, list):
        found = {"string" if isinstance(c, str) else "null" if c is None else "number" for c in choices}
    for group in ("anyOf", "oneOf", "allOf"):
        members = schema.get(group)
        for member in members if isinstance(members, list) else ():
            found |= types_of(member, depth + 1)
    return frozenset(name for name in found if isinstance(name, str))


def _read(text: str) -> Any:
    """Return the value of JSON text, or of Python's words for true, false and null; the text itself otherwise."""
    if text in _AS_PYTHON:
        return _AS_PYTHON[text]
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def _is_of(value: Any, wanted: frozenset[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in wanted
    if isinstance(value, float) and value.is_integer() and "integer" in wanted:
        return True
    return any(isinstance(value, kind) for name, kind in _WORDS.items() if name in wanted)
