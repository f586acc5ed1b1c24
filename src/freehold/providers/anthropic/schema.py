"""Fits a JSON schema to what Anthropic's constrained output takes; says what is then not enforced.

Objects must be closed there, and bounds of numbers, lengths and counts are not known: as the vendor's own client does,
they are put into the description, where the model may follow them (platform.claude.com/docs, structured outputs).
Knows no job. Path: AnthropicWire.request -> fitted
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
)
_KEPT = ("$ref", "enum", "const", "type", "title", "description", "default", "required")
_MANY = ("anyOf", "allOf", "oneOf")
_NAMED = ("properties", "$defs", "definitions")
MOST_DEPTH = 100


def fitted(schema: Mapping[str, Any], free: Callable[[], None]) -> tuple[dict[str, Any], set[str]]:
    """Return the schema and the keywords that are not enforced. `free` is called for an object of unnamed keys."""
    loose: set[str] = set()
    return _fitted(schema, free, loose, 0), loose


def _fitted(schema: Any, free: Callable[[], None], loose: set[str], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > MOST_DEPTH:
        return schema
    fitted_schema: dict[str, Any] = {name: schema[name] for name in _KEPT if name in schema}

    def fit(part: Any) -> Any:
        return _fitted(part, free, loose, depth + 1)

    if "items" in schema:
        fitted_schema["items"] = fit(schema["items"])
    for name in _MANY:
        if isinstance(parts := schema.get(name), list):
            fitted_schema["allOf" if name == "allOf" else "anyOf"] = [fit(part) for part in parts]
    for name in _NAMED:
        if isinstance(parts := schema.get(name), Mapping):
            fitted_schema[name] = {key: fit(part) for key, part in parts.items()}
    if _is_object(schema):
        if isinstance(schema.get("additionalProperties"), Mapping) or not schema.get("properties"):
            free()
        fitted_schema["additionalProperties"] = False
    if left := _left(schema, fitted_schema):
        limits = ", ".join(f"{key}: {value}" for key, value in left.items())
        fitted_schema["description"] = "\n".join(
            filter(None, (str(schema.get("description") or ""), f"({limits})"))
        )
    loose.update(left, {"oneOf"} & schema.keys())
    return fitted_schema


def _is_object(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema


def _left(schema: Mapping[str, Any], fitted_schema: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords that have no place; put the few that have one under a condition into `fitted_schema`."""
    known = {*_KEPT, "items", *_MANY, *_NAMED, "additionalProperties", "$schema", "$id", "examples"}
    left = {name: value for name, value in schema.items() if name not in known}
    if left.get("format") in _FORMATS:
        fitted_schema["format"] = left.pop("format")
    if left.get("minItems") in (0, 1):
        fitted_schema["minItems"] = left.pop("minItems")
    return left
