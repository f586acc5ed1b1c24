"""Long JSON: its memory estimated before it is parsed, parsed and written so that other threads run meanwhile.

A call of the parser or the encoder holds the interpreter to its end: two million numbers in one call kept the loop
waiting for 0.2 s. Knows values; knows no route.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from freehold.serve.http.core.problems import Refused

# --- the memory of a body once it is parsed, by its lists, objects, names, values and bytes ---------
# The parser makes an object of some 56 bytes from every two bytes of `[[],[],...`, so a body is counted first, by its
# punctuation, in pieces between which other threads run. The first count includes punctuation inside strings, so it
# is an upper bound; a body above a limit is counted again without strings.

# Measured with CPython 3.11, rounded up: an empty list takes 56 bytes and a dict of one name 184, and the struct that
# it is converted to as much again as a list; a short text in a list takes 64.
CONTAINER, NAME, VALUE = 250, 100, 64
WIDEST = 4  # bytes of a character in a string that holds one beyond U+FFFF
COUNTED_PIECE = 32 << 10  # bytes counted at a time: about a millisecond in which no other thread runs
_INNER = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_REST = re.compile(_INNER, re.S)  # of a string, after its first quote
_ONE = re.compile(b'"' + _INNER + b'"', re.S)
_WHOLE = re.compile(rb'(?:[^"]++|"' + _INNER + rb'")*+', re.S)


@dataclass(frozen=True, slots=True)
class BodyStructure:
    """Counts of a body's parts, exact or an upper bound. `values`: items of lists and objects."""

    containers: int
    names: int
    values: int

    def within(self, most: BodyStructure) -> bool:
        """Return whether no count is beyond that of `most`."""
        return self.containers <= most.containers and self.names <= most.names and self.values <= most.values

    def __add__(self, other: BodyStructure) -> BodyStructure:
        return BodyStructure(
            self.containers + other.containers, self.names + other.names, self.values + other.values
        )


NOTHING = BodyStructure(0, 0, 0)


def escapes(body: bytes) -> int:
    """Count backslashes."""
    return sum(body.count(b"\\", at, at + COUNTED_PIECE) for at in range(0, len(body), COUNTED_PIECE))


def structure_of(body: bytes, most: BodyStructure) -> BodyStructure:
    """Count `body`: an upper bound if that is within `most`, else exact up to the first count beyond `most`."""
    structure = _counted(body, 0, COUNTED_PIECE)
    for at in range(COUNTED_PIECE, len(body), COUNTED_PIECE):
        structure += _counted(body, at, at + COUNTED_PIECE)
    return structure if structure.within(most) else exact_structure(body, most)


def structure_of_value(value: object) -> BodyStructure:
    """Count a value that is parsed, exactly; an upper bound for what is JSON in it already."""
    structure, containers, names, values = NOTHING, 0, 0, 0
    waiting = [value] if isinstance(value, dict | list) else []
    while waiting:
        each = waiting.pop()
        containers, values = containers + 1, values + len(each)
        names += len(each) if isinstance(each, dict) else 0
        inner = each.values() if isinstance(each, dict) else each
        waiting += [one for one in inner if isinstance(one, dict | list)]
        for one in inner:
            if isinstance(one, msgspec.Raw):
                text = bytes(one)
                structure = sum(
                    (_counted(text, at, at + COUNTED_PIECE) for at in range(0, len(text), COUNTED_PIECE)),
                    structure,
                )
    return structure + BodyStructure(containers, names, values)


def weight(body: bytes, structure: BodyStructure) -> int:
    """Return about how many bytes of memory `body` takes once it is parsed, itself included."""
    narrow = body.isascii() and not _is_in(body, b"\\u")
    text = len(body) if narrow else WIDEST * len(body)
    parts = CONTAINER * structure.containers + NAME * structure.names + VALUE * structure.values
    return len(body) + text + parts


def _is_in(body: bytes, sign: bytes) -> bool:
    if len(body) <= COUNTED_PIECE:
        return sign in body
    pieces = range(0, len(body), COUNTED_PIECE)
    return any(body.find(sign, at, at + COUNTED_PIECE + 1) >= 0 for at in pieces)


def _counted(text: bytes, start: int = 0, end: int | None = None) -> BodyStructure:
    containers = text.count(b"[", start, end) + text.count(b"{", start, end)
    return BodyStructure(containers, text.count(b":", start, end), text.count(b",", start, end) + containers)


def exact_structure(body: bytes, most: BodyStructure) -> BodyStructure:
    """Count outside strings, piece by piece; stop at the first count beyond `most`."""
    structure, at = NOTHING, 0
    while at < len(body) and structure.within(most):
        stop = min(at + COUNTED_PIECE, len(body))
        prefix = _WHOLE.match(body, at, stop)
        end = prefix.end() if prefix else at
        structure += _counted(_ONE.sub(b"", body[at:end]))
        at = end if end == stop else _string_end(body, end)
    return structure


def _string_end(body: bytes, start: int) -> int:
    """Return where the string that begins at `start` ends, or the end of the body if it does not end."""
    at = start + 1
    while at < len(body) and body[at] != ord('"'):
        rest = _REST.match(body, at, at + COUNTED_PIECE)
        end = rest.end() if rest else at
        at = end if end > at else len(body)  # only a backslash is left
    return at + 1


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
# A million token ids in one call take 30 ms, 60,000 objects 15. A list without a text or another list in it can be cut
# at any comma, a text beyond ASCII between two characters. Any other long value is passed over first, which finds
# where its items begin, and these are parsed some at a time.

LONG = 1 << 18  # bytes of a value that is parsed in pieces
NUMBERS_PIECE = 64 << 10  # bytes of one, which take a millisecond at most
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
        cut = _CUT.search(text, at + NUMBERS_PIECE, at + 2 * NUMBERS_PIECE)
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
    values: list[Any] = []
    piece: list[bytes] = []
    size = 0
    for raw in raws:
        text = bytes(raw)
        if size + len(text) > NUMBERS_PIECE and piece:
            values += msgspec.json.decode(b"[" + b",".join(piece) + b"]")
            piece, size = [], 0
        if len(text) > NUMBERS_PIECE:
            values.append(_value(text, levels))
        else:
            piece.append(text)
            size += len(text)
    return values + msgspec.json.decode(b"[" + b",".join(piece) + b"]")


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
        stop = text.find(b",", at + NUMBERS_PIECE, end)
        stop = end if stop < 0 else stop
        numbers += msgspec.json.decode(b"[" + text[at:stop] + b"]")
        at = stop + 1
    return numbers
