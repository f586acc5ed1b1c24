"""Parses a JSON body whose fields may be long lists of numbers, in calls of bounded length.

A million token ids in one call hold the interpreter for 30 ms. A list without a text or another list in it can be cut
at any comma, so it is parsed a piece at a time. Knows JSON's punctuation; knows no field.
Path: limits.parse -> decoded; bodies.weigh -> values_beside
"""

from __future__ import annotations

from typing import Any

import msgspec

from freehold.server.core.structure import BodyStructure, structure_of

LONG = 1 << 18  # bytes of a list that is parsed in pieces
PIECE = 64 << 10  # bytes of one, which take 0.3 ms
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decoded(body: bytes) -> Any:
    """Return the value of a body. Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError."""
    if len(body) <= LONG or (fields := _fields(body)) is None:
        return msgspec.json.decode(body)
    texts = {name: bytes(raw) for name, raw in fields.items()}
    if not any(map(_is_numbers, texts.values())):
        return msgspec.json.decode(body)
    return {n: _numbers(t) if _is_numbers(t) else msgspec.json.decode(t) for n, t in texts.items()}


def values_beside(body: bytes, most: BodyStructure) -> int:
    """Return how many values a body has beside its long lists of numbers, up to the first beyond `most`."""
    fields = _fields(body)
    if fields is None:  # it will be refused, or is short of values by itself
        return structure_of(body, most).values
    texts = (bytes(raw) for raw in fields.values())
    return len(fields) + sum(structure_of(text, most).values for text in texts if not _is_numbers(text))


def _fields(body: bytes) -> dict[str, msgspec.Raw] | None:
    """Return the fields of an object unparsed; None for anything else. It passes over what it does not parse."""
    try:
        return _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_numbers(text: bytes) -> bool:
    """Tell whether this is a long list that has neither texts nor lists nor objects in it."""
    long = len(text) > LONG and text.startswith(b"[")
    return long and b'"' not in text and text.find(b"[", 1) < 0 and b"{" not in text


def _numbers(text: bytes) -> list[Any]:
    """Parse such a list. What is between its commas was passed over once, so every piece has whole values."""
    numbers: list[Any] = []
    at, end = 1, len(text) - 1
    while at < end:
        stop = text.find(b",", at + PIECE, end)
        stop = end if stop < 0 else stop
        numbers += msgspec.json.decode(b"[" + text[at:stop] + b"]")
        at = stop + 1
    return numbers
