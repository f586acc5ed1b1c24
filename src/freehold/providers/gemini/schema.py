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


def _subset(given: Any, loose: set[str], depth: int) -> Any:
    if not isinstance(given, Mapping) or depth > MOST_DEPTH:
        return given
    made: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for name, value in given.items():
        if name in _READ:
            made[name] = value
        elif name in _ONE:
            made[name] = _subset(value, loose, depth + 1)
        elif name in _MANY and isinstance(value, list):
            made[name] = [_subset(part, loose, depth + 1) for part in value]
        elif name in _NAMED and isinstance(value, Mapping):
            made[name] = {key: _subset(part, loose, depth + 1) for key, part in value.items()}
        elif name == "const" and isinstance(value, str | int | float):
            made["enum"] = [value]
        elif name not in _SAYS_NOTHING:
            left[name] = value
    if left:
        loose.update(left)
        said = ", ".join(f"{name}: {value}" for name, value in left.items())
        made["description"] = "\n".join(filter(None, (str(given.get("description") or ""), f"({said})")))
    return made
