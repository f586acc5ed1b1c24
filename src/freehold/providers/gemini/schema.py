"""Keeps of a JSON schema the keywords that Gemini reads, and says which it does not.

The list is that of responseJsonSchema and parametersJsonSchema (ai.google.dev/api/generate-content). Others go into
the description, where the model may follow them. Path: GeminiWire.request -> subset
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_READ = frozenset(
    (
        *("$id", "$ref", "$anchor", "type", "format", "title", "description", "enum", "required"),
        *("minItems", "maxItems", "minimum", "maximum", "propertyOrdering"),
    )
)
_ONE, _MANY, _NAMED = (
    ("items", "additionalProperties"),
    ("anyOf", "oneOf", "prefixItems"),
    ("properties", "$defs"),
)
_SAYS_NOTHING = frozenset(
    ("$schema", "default", "examples", "example", "deprecated", "readOnly", "writeOnly")
)
MOST_DEPTH = 100


def subset(schema: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return the schema in Gemini's keywords, and the keywords that are not enforced."""
    loose: set[str] = set()
    return _subset(schema, loose, 0), loose


def _subset(schema: Any, loose: set[str], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > MOST_DEPTH:
        return schema
    subset_schema: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _READ:
            subset_schema[name] = value
        elif name in _ONE:
            subset_schema[name] = _subset(value, loose, depth + 1)
        elif name in _MANY and isinstance(value, list):
            subset_schema[name] = [_subset(part, loose, depth + 1) for part in value]
        elif name in _NAMED and isinstance(value, Mapping):
            subset_schema[name] = {key: _subset(part, loose, depth + 1) for key, part in value.items()}
        elif name == "const" and isinstance(value, str | int | float):
            subset_schema["enum"] = [value]
        elif name not in _SAYS_NOTHING:
            left[name] = value
    if left:
        loose.update(left)
        limits = ", ".join(f"{name}: {value}" for name, value in left.items())
        subset_schema["description"] = "\n".join(
            filter(None, (str(schema.get("description") or ""), f"({limits})"))
        )
    return subset_schema
