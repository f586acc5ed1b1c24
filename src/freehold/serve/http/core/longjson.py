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

from freehold._native import count_json
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


def decoded(body: bytes, *, wide: bool = True) -> Any:
    """Return the value of a body; `wide`: as BodyStructure. Raises DecodeError, UnicodeDecodeError, RecursionError.

    Raises Refused (413) for a value that lies deep and holds more than DEEP.
    """
    try:
        return _value(body, LEVELS, wide)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(body)  # its error tells where in the body it is


def _value(raw: bytes | msgspec.Raw, levels: int, wide: bool) -> Any:
    view = memoryview(raw)  # a copy of a long value holds the interpreter as long as its parser does
    begin = bytes(view[:64]).lstrip()[:1]
    passed = levels < LEVELS  # it was passed over, so it is whole
    if len(view) <= LONG or (passed and begin == b'"' and not wide):
        return msgspec.json.decode(view)
    if not levels:
        return _deep(bytes(view), wide)
    if passed and begin == b"[" and _is_numbers(text := bytes(view)):
        return _numbers(text)
    if begin == b"{":
        return {name: _value(each, levels - 1, wide) for name, each in _FIELDS.decode(view).items()}
    if begin == b"[":
        return _items(_ITEMS.decode(view), levels - 1, wide)
    if passed and begin == b'"' and not (text := bytes(view)).isascii():
        return _text(text)
    return msgspec.json.decode(view)


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


def _deep(text: bytes, wide: bool) -> Any:
    holds = structure_of(text)
    if holds.within(FEW):
        return _value(text, 2, wide)
    for has, limit, what in (
        (holds.containers, DEEP.containers, "lists and objects"),
        (holds.names, DEEP.names, "names in objects"),
        (holds.values, DEEP.values, "values in lists and objects"),
    ):
        if has > limit:
            message = f"one value within the body holds more than {limit:,} {what}; send less of them"
            raise Refused(413, message, code="body_too_complex")
    return msgspec.json.decode(text)


def _items(raws: list[msgspec.Raw], levels: int, wide: bool) -> list[Any]:
    """Parse a list's items: short ones together, up to a piece, and a long one by itself."""
    values: list[Any] = []
    piece: list[bytes] = []
    size = 0
    for raw in raws:
        length = len(memoryview(raw))
        if size + length > NUMBERS_PIECE and piece:
            values += msgspec.json.decode(b"[" + b",".join(piece) + b"]")
            piece, size = [], 0
        if length > NUMBERS_PIECE:
            values.append(_value(raw, levels, wide))
        else:
            piece.append(bytes(raw))
            size += length
    return values + msgspec.json.decode(b"[" + b",".join(piece) + b"]")


def values_beside(body: bytes) -> int:
    """Return how many values a body has beside its long lists of numbers."""
    fields = _fields(body)
    if fields is None:  # it will be refused, or is short of values by itself
        return structure_of(body).values
    texts = (bytes(raw) for raw in fields.values())
    return len(fields) + sum(structure_of(text).values for text in texts if not _is_numbers(text))


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
