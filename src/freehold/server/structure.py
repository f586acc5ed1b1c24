"""Counts what a JSON body will become before anything is made of it: lists, objects, names, values, bytes.

The parser makes an object of some 56 bytes from every two bytes of `[[],[],...`, and holds the interpreter until it is
done, so a body is counted first, by its punctuation: C counts 16 MB in a few milliseconds. Punctuation inside strings
counts too at first, which can only be too much; what is then beyond a limit is counted again without its strings.
Knows JSON's punctuation; knows no field, no protocol and no limit's words. Path: bodies.parsed -> structure_of
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Measured with CPython 3.11, rounded up: an empty list takes 56 bytes and a dict of one name 184, and the struct that
# it is converted to as much again as a list; a short text in a list takes 64.
CONTAINER, NAME, VALUE = 250, 100, 64
WIDEST = 4  # bytes of a character in a string that holds one beyond U+FFFF
PIECE = 32 << 10  # bytes counted at a time: about a millisecond in which no other thread runs
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ONE = re.compile(_STRING, re.S)
_WHOLE = re.compile(rb'(?:[^"]++|' + _STRING + rb")*+", re.S)


@dataclass(frozen=True, slots=True)
class Structure:
    """What a body holds, or at most holds. `values`: items of lists and objects."""

    containers: int
    names: int
    values: int

    def within(self, most: Structure) -> bool:
        """Return whether no count is beyond that of `most`."""
        return self.containers <= most.containers and self.names <= most.names and self.values <= most.values


def structure_of(body: bytes, most: Structure) -> Structure:
    """Count `body`; the result is exact, or all of it is within `most`, or some count beyond `most` was reached."""
    found = _counted(body)
    return found if found.within(most) else _exact(body, most)


def weight(body: bytes, found: Structure) -> int:
    """Return about how many bytes of memory `body` takes once it is parsed, itself included."""
    narrow = body.isascii() and b"\\u" not in body
    text = len(body) if narrow else WIDEST * len(body)
    return len(body) + text + CONTAINER * found.containers + NAME * found.names + VALUE * found.values


def _counted(text: bytes) -> Structure:
    containers = text.count(b"[") + text.count(b"{")
    return Structure(containers, text.count(b":"), text.count(b",") + containers)


def _exact(body: bytes, most: Structure) -> Structure:
    """Count outside strings, piece by piece, and stop where it is too much already."""
    containers = names = values = at = 0
    while at < len(body):
        prefix = _WHOLE.match(body, at, min(at + PIECE, len(body)))
        end = prefix.end() if prefix else at
        here = _counted(_ONE.sub(b"", body[at:end]))
        containers, names, values = (
            containers + here.containers,
            names + here.names,
            values + here.values,
        )
        if end < min(at + PIECE, len(body)):  # in the midst of a string
            string = _ONE.match(body, end)
            if string is None:  # without an end, which the parser will say
                break
            end = string.end()
        at = end
        if not (found := Structure(containers, names, values)).within(most):
            return found
    return Structure(containers, names, values)
