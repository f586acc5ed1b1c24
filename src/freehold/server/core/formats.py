"""JSON schemas in requests, for answers and for arguments of tools: measured here, and passed on as parsed.

Knows sizes; knows no JSON schema's meaning, which the engine compiles and refuses in its own words.
Path: a protocol's fields -> schema_format, bounded -> Job.format, Tool.parameters
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from freehold.server.core.problems import Refused
from freehold.types import MAX_FORMAT_CHARS, Format

S = TypeVar("S")


def schema_format(schema: dict[str, Any] | bool, at: str) -> Format:
    """Return the format of the JSON schema that stands at `at` in the request."""
    return Format("json_schema", bounded(schema, at))


def bounded(schema: S, at: str) -> S:
    """Return the schema, or what holds one. Raises Refused for more than MAX_FORMAT_CHARS as JSON."""
    size = len(msgspec.json.encode(schema))
    if size > MAX_FORMAT_CHARS:
        raise Refused(400, f"{at} has {size:,} bytes; expected at most {MAX_FORMAT_CHARS:,}", param=at)
    return schema
