"""Estimates the memory of a parsed JSON body before parsing: counts its lists, objects, names, values and bytes.

The parser makes an object of some 56 bytes from every two bytes of `[[],[],...`, and holds the interpreter until it is
done, so a body is counted first, by its punctuation, in pieces between which other threads run. The first count
includes punctuation inside strings, so it is an upper bound; a body above a limit is counted again without strings.
Knows JSON's punctuation; knows no field, no protocol and no limit's words. Path: bodies.weigh -> structure_of
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

# Measured with CPython 3.11, rounded up: an empty list takes 56 bytes and a dict of one name 184, and the struct that
# it is converted to as much again as a list; a short text in a list takes 64.
CONTAINER, NAME, VALUE = 250, 100, 64
WIDEST = 4  # bytes of a character in a string that holds one beyond U+FFFF
PIECE = 32 << 10  # bytes counted at a time: about a millisecond in which no other thread runs
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
    return sum(body.count(b"\\", at, at + PIECE) for at in range(0, len(body), PIECE))


def structure_of(body: bytes, most: BodyStructure) -> BodyStructure:
    """Count `body`: an upper bound if that is within `most`, else exact up to the first count beyond `most`."""
    structure = NOTHING
    for at in range(0, len(body), PIECE):
        structure += _counted(body, at, at + PIECE)
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
                    (_counted(text, at, at + PIECE) for at in range(0, len(text), PIECE)), structure
                )
    return structure + BodyStructure(containers, names, values)


def weight(body: bytes, structure: BodyStructure) -> int:
    """Return about how many bytes of memory `body` takes once it is parsed, itself included."""
    pieces = range(0, len(body), PIECE)
    narrow = body.isascii() and all(body.find(b"\\u", at, at + PIECE + 1) < 0 for at in pieces)
    text = len(body) if narrow else WIDEST * len(body)
    return (
        len(body)
        + text
        + CONTAINER * structure.containers
        + NAME * structure.names
        + VALUE * structure.values
    )


def _counted(text: bytes, start: int = 0, end: int | None = None) -> BodyStructure:
    containers = text.count(b"[", start, end) + text.count(b"{", start, end)
    return BodyStructure(containers, text.count(b":", start, end), text.count(b",", start, end) + containers)


def exact_structure(body: bytes, most: BodyStructure) -> BodyStructure:
    """Count outside strings, piece by piece; stop at the first count beyond `most`."""
    structure, at = NOTHING, 0
    while at < len(body) and structure.within(most):
        stop = min(at + PIECE, len(body))
        prefix = _WHOLE.match(body, at, stop)
        end = prefix.end() if prefix else at
        structure += _counted(_ONE.sub(b"", body[at:end]))
        at = end if end == stop else _string_end(body, end)
    return structure


def _string_end(body: bytes, start: int) -> int:
    """Return where the string that begins at `start` ends, or the end of the body if it does not end."""
    at = start + 1
    while at < len(body) and body[at] != ord('"'):
        rest = _REST.match(body, at, at + PIECE)
        end = rest.end() if rest else at
        at = end if end > at else len(body)  # only a backslash is left
    return at + 1
