"""Long JSON: its memory estimated before it is parsed, parsed and written so that other threads run meanwhile.

A call of the parser or the encoder holds the interpreter to its end: two million numbers in one call kept the loop
waiting for 0.2 s. Knows values; knows no route.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold._native import count_json, cut_json
from freehold.serve.http.core.problems import Refused

# --- the memory of a body once it is parsed, by its lists, objects, names, values and bytes ---------
# The parser makes an object of some 56 bytes from every two bytes of `[[],[],...`, so a body is counted first, by its
# punctuation, without the interpreter: a count of 16 MB in pieces kept the loop waiting between each two of them.

# Measured with CPython 3.11, rounded up: an empty list takes 56 bytes and a dict of one name 184, and the struct that
# it is converted to as much again as a list; a short text in a list takes 64.
CONTAINER, NAME, VALUE = 250, 100, 64
WIDEST = 4  # bytes of a character in a string that holds one beyond U+FFFF


@dataclass(frozen=True, slots=True)
class BodyStructure:
    """Counts of a body's parts. `values`: items of lists and objects."""

    containers: int
    names: int
    values: int
    escapes: int = 0  # backslashes
    wide: bool = False  # whether a string may hold a character beyond ASCII

    def within(self, most: BodyStructure) -> bool:
        """Return whether no count is beyond that of `most`."""
        return self.containers <= most.containers and self.names <= most.names and self.values <= most.values

    def __add__(self, other: BodyStructure) -> BodyStructure:
        return BodyStructure(
            self.containers + other.containers, self.names + other.names, self.values + other.values
        )


NOTHING = BodyStructure(0, 0, 0)


def structure_of(text: bytes) -> BodyStructure:
    """Count the parts of a JSON text; other threads run meanwhile."""
    return BodyStructure(*count_json(text))


def weight(body: bytes, structure: BodyStructure) -> int:
    """Return about how many bytes of memory `body` takes once it is parsed, itself included."""
    text = WIDEST * len(body) if structure.wide else len(body)
    parts = CONTAINER * structure.containers + NAME * structure.names + VALUE * structure.values
    return len(body) + text + parts


# --- written piece by piece -------------------------------------------------------------------------

SCORES = 128  # tokens whose log-probabilities, with 20 alternatives each, one call writes
PIECE = 4096  # plain values that one call writes, in less than a millisecond


def long_list(values: Sequence[object], piece: int = PIECE) -> msgspec.Raw:
    """Return a list as JSON, written `piece` values at a time; what is encoded later copies it."""
    parts = (msgspec.json.encode(values[at : at + piece])[1:-1] for at in range(0, len(values), piece))
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def in_pieces(value: Any) -> Any:
    """Return a JSON value whose lists of more than SCORES are written already, piece by piece."""
    if isinstance(value, dict):
        return {name: in_pieces(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    return long_list(value, SCORES) if len(value) > SCORES else [in_pieces(each) for each in value]


# --- parsed in calls of bounded length --------------------------------------------------------------
# A million token ids in one call take 30 ms, 60,000 objects 15, a text of 16 MB 5 and with escapes 20. A long list or
# object is cut between its items and a long text between two characters, both of which other threads run beside.

LONG = 1 << 18  # bytes of a value that is parsed in pieces
PIECE_BYTES = 64 << 10  # of a piece, which takes a millisecond at most
# What one call parses where no level is left: as much as a whole body may hold elsewhere, which takes 20 ms.
DEEP = BodyStructure(1 << 16, 1 << 17, 1 << 18)
LEVELS = 4  # that are cut one by one: a body, its messages, the parts of one, what a part holds
# Of a value below those levels that is cut all the same: a part with a long text.
FEW = BodyStructure(16, 64, 64)
PLACED = (
    1 << 20
)  # bytes of a body whose error is looked for by parsing it whole: that takes no longer than a piece
# A character's first byte, with no backslash shortly before it: two escapes that are one character have twelve bytes.
# Or an escape that is not the second half of such a one; after another backslash it might be none.
_CUT = re.compile(rb"(?<=[^\\]{12})[\x20-\x7f\xc2-\xf4]|(?<=[^\\])\\(?=[^u]|u[^dD]|u[dD][^c-fC-F])")
_SPACE = b" \t\r\n"
_NAME = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:')
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decoded(body: bytes) -> Any:
    """Return the value of a body. Raises DecodeError, UnicodeDecodeError, RecursionError.

    Raises Refused (413) for a value that lies deep and holds more than DEEP.
    """
    try:
        return _value(body, 0, len(body), LEVELS)
    except (msgspec.DecodeError, UnicodeDecodeError):
        if len(body) > PLACED:
            raise
        return msgspec.json.decode(body)  # its error tells where in the body it is


def _value(body: bytes, at: int, end: int, levels: int) -> Any:
    """Parse the value in body[at:end]."""
    begin = body[at : at + 64].lstrip()[:1]
    if end - at <= LONG or begin not in b'[{"':
        return msgspec.json.decode(memoryview(body)[at:end])
    if begin == b'"':
        return _text(body, at, end)
    if not levels:
        return _deep(body[at:end])
    try:
        cuts = cut_json(body, at, end, PIECE_BYTES)
    except ValueError as e:
        raise msgspec.DecodeError(str(e)) from None
    pieces = zip(cuts[::2], cuts[1::2], strict=True)
    return _fields_of(body, pieces, levels - 1) if begin == b"{" else _items_of(body, pieces, levels - 1)


def _fields_of(body: bytes, pieces: Iterable[tuple[int, int]], levels: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for at, end in pieces:
        named = _NAME.match(body, at, min(end, at + PIECE_BYTES)) if end - at > LONG else None
        if named is None:
            fields |= msgspec.json.decode(b"{" + body[at:end] + b"}")
        else:
            fields[msgspec.json.decode(named[1])] = _value(body, named.end(), end, levels)
    return fields


def _items_of(body: bytes, pieces: Iterable[tuple[int, int]], levels: int) -> list[Any]:
    values: list[Any] = []
    for at, end in pieces:
        if end - at > LONG:
            values.append(_value(body, at, end, levels))
        else:
            values += msgspec.json.decode(b"[" + body[at:end] + b"]")
    return values


def _text(body: bytes, at: int, end: int) -> str:
    """Parse a long text in pieces, which are joined by one copy: to parse one of 16 MB took 26 ms."""
    while body[at] in _SPACE:
        at += 1
    while body[end - 1] in _SPACE:
        end -= 1
    if body[end - 1 : end] != b'"':
        raise msgspec.DecodeError("Input data was truncated")
    pieces: list[str] = []
    at, end = at + 1, end - 1
    while at < end:
        cut = _CUT.search(body, at + PIECE_BYTES, at + 2 * PIECE_BYTES)
        stop = end if cut is None else min(cut.start(), end)  # none: it is backslashes, which have a limit
        pieces.append(msgspec.json.decode(b'"' + body[at:stop] + b'"'))
        at = stop
    return "".join(pieces)


def _deep(text: bytes) -> Any:
    holds = structure_of(text)
    if holds.within(FEW):
        return _value(text, 0, len(text), 2)
    for has, limit, what in (
        (holds.containers, DEEP.containers, "lists and objects"),
        (holds.names, DEEP.names, "names in objects"),
        (holds.values, DEEP.values, "values in lists and objects"),
    ):
        if has > limit:
            message = f"one value within the body holds more than {limit:,} {what}; send less of them"
            raise Refused(413, message, code="body_too_complex")
    return msgspec.json.decode(text)


def values_beside(body: bytes) -> int:
    """Return how many values a body has beside its long lists of numbers."""
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # it will be refused, or is short of values by itself
        return structure_of(body).values
    texts = (bytes(raw) for raw in fields.values())
    return len(fields) + sum(structure_of(text).values for text in texts if not _is_numbers(text))


def _is_numbers(text: bytes) -> bool:
    """Tell whether this is a long list that has neither texts nor lists nor objects in it."""
    long = len(text) > LONG and text.startswith(b"[")
    return long and b'"' not in text and text.find(b"[", 1) < 0 and b"{" not in text
