"""JSON schemas in requests, for answers and for arguments of tools: measured here, and passed on as parsed.

Knows sizes; knows no JSON schema's meaning, which the engine compiles and refuses in its own words.
Path: a protocol's fields -> schema_format, bounded -> Job.format, Tool.parameters
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

from freehold.server.core.problems import Refused
from freehold.types import MAX_FORMAT_CHARS, Format

S = TypeVar("S")
_ON_THE_WIRE = range(-(2**63), 2**64)  # integers that msgpack has
_LONG_DIGITS = re.compile(rb"\d{19}")  # no shorter integer is outside it


def schema_format(schema: dict[str, Any] | bool, at: str) -> Format:
    """Return the format of the JSON schema that is at `at` in the request."""
    return Format("json_schema", bounded(schema, at))


def bounded(schema: S, at: str) -> S:
    """Return the schema, or what holds one. Raises Refused for more than MAX_FORMAT_CHARS as JSON."""
    text = msgspec.json.encode(schema)
    if len(text) > MAX_FORMAT_CHARS:
        raise Refused(400, f"{at} has {len(text):,} bytes; expected at most {MAX_FORMAT_CHARS:,}", param=at)
    if not _LONG_DIGITS.search(text):
        return schema
    return msgspec.convert(json.loads(text, parse_int=_number), type(schema))


def _number(digits: str) -> int | float:
    """Return an integer, or the nearest float where it has more than 64 bits, as the compiler of grammars takes it."""
    number = int(digits)
    return number if number in _ON_THE_WIRE else float(digits)
