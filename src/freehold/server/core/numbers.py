"""Parses a long JSON body in calls of bounded length: a call of the parser holds the interpreter to its end.

A million token ids in one call take 30 ms, 60,000 objects 15. A list without a text or another list in it can be cut
at any comma, a text beyond ASCII between two characters. Any other long value is passed over first, which finds where
its items begin, and these are parsed some at a time. Knows JSON's punctuation; knows no field.
Path: limits.parse -> decoded; bodies.weigh -> values_beside
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from freehold.server.core.problems import Refused
from freehold.server.core.structure import BodyStructure, structure_of

LONG = 1 << 18  # bytes of a value that is parsed in pieces
PIECE = 64 << 10  # bytes of one, which take a millisecond at most
# What one call parses where no level is left: as much as a whole body may hold elsewhere, which takes 20 ms.
DEEP = BodyStructure(1 << 16, 1 << 17, 1 << 18)
LEVELS = 4  # that are passed over one by one: a body, its messages, the parts of one, what a part holds
# Of a value below those levels that is passed over all the same: a part with a long text.
FEW = BodyStructure(16, 64, 64)
# A character's first byte, with no backslash shortly before it: two escapes that are one character have twelve bytes.
# Or an escape that is not the second half of such a one; after another backslash it might be none.
_CUT = re.compile(rb"(?<=[^\\]{12})[\x20-\x7f\xc2-\xf4]|(?<=[^\\])\\(?=[^u]|u[^dD]|u[dD][^c-fC-F])")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def decoded(body: bytes) -> Any:
    """Return the value of a body. Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError.

    Raises Refused (413) for a value that lies deep and holds more than DEEP.
    """
    try:
        return _value(body, LEVELS)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(body)  # its error tells where in the body it is


def _value(text: bytes, levels: int) -> Any:
    if len(text) <= LONG:
        return msgspec.json.decode(text)
    if not levels:
        return _deep(text)
    if levels < LEVELS and _is_numbers(text):  # it was passed over, so it is whole
        return _numbers(text)
    begin = text[:64].lstrip()[:1]
    if begin == b"{":
        return {name: _value(bytes(raw), levels - 1) for name, raw in _FIELDS.decode(text).items()}
    if begin == b"[":
        return _items(_ITEMS.decode(text), levels - 1)
    if levels < LEVELS and begin == b'"' and not text.isascii():
        return _text(text)
    return msgspec.json.decode(text)


def _text(text: bytes) -> str:
    """Parse a long text in pieces, which are joined by one copy: to parse one of 16 MB took 26 ms."""
    pieces: list[str] = []
    at, end = 1, len(text) - 1
    while at < end:
        cut = _CUT.search(text, at + PIECE, at + 2 * PIECE)
        stop = end if cut is None else min(cut.start(), end)  # none: it is backslashes, which have a limit
        pieces.append(msgspec.json.decode(b'"' + text[at:stop] + b'"'))
        at = stop
    return "".join(pieces)


def _deep(text: bytes) -> Any:
    if not text.isascii() and structure_of(text, FEW).within(FEW):
        return _value(text, 2)
    holds = structure_of(text, DEEP)
    for has, limit, what in (
        (holds.containers, DEEP.containers, "lists and objects"),
        (holds.names, DEEP.names, "names in objects"),
        (holds.values, DEEP.values, "values in lists and objects"),
    ):
        if has > limit:
            message = f"one value within the body holds more than {limit:,} {what}; send less of them"
            raise Refused(413, message, code="body_too_complex")
    return msgspec.json.decode(text)


def _items(raws: list[msgspec.Raw], levels: int) -> list[Any]:
    """Parse a list's items: short ones together, up to a piece, and a long one by itself."""
    found: list[Any] = []
    piece: list[bytes] = []
    size = 0
    for raw in raws:
        text = bytes(raw)
        if size + len(text) > PIECE and piece:
            found += msgspec.json.decode(b"[" + b",".join(piece) + b"]")
            piece, size = [], 0
        if len(text) > PIECE:
            found.append(_value(text, levels))
        else:
            piece.append(text)
            size += len(text)
    return found + msgspec.json.decode(b"[" + b",".join(piece) + b"]")


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
