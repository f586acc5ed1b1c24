"""Text that arrives in pieces, read as if it were whole.

Readers are generators: each `yield` says "more text, please", so a reader is written straight down and the place
where it waits is its state. What a reader decides depends on the characters and on the end, never on where the
pieces were cut; that is why a streamed answer parses as a whole one does. Knows JSON's grammar; knows no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

MAX_DEPTH = 64  # of nested values: Python's own JSON reader recurses
_STRING_STOP = re.compile(r'["\\]')
_SCALAR = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_WORD = re.compile(r"[-+.\w]*")
_SPACE = re.compile(r"\s*")


class TextSource:
    """A growing text and a place in it; `ended` once nothing more will come."""

    def __init__(self) -> None:
        self.text, self.at, self.ended = "", 0, False

    def rest(self) -> str:
        """Return what was not read yet."""
        return self.text[self.at :]

    def char(self) -> Reading[str]:
        """Return the next character without reading it; "" at the end."""
        while self.at >= len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def space(self) -> Reading[None]:
        """Read over blanks."""
        yield from self._matched(_SPACE)

    def word(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Read the longest run that `pattern` (of single characters, repeated) matches."""
        return (yield from self._matched(pattern))

    def _matched(self, pattern: re.Pattern[str]) -> Reading[str]:
        start = at = self.at
        while True:
            match = pattern.match(self.text, at)
            at = match.end() if match else at
            if at < len(self.text) or self.ended:
                break
            yield
        self.at = at
        return self.text[start:at]

    def literal(self, *marks: str) -> Reading[str]:
        """Read the first of `marks` that the text has here and return it; "" if it has none."""
        while True:
            here = self.text[self.at : self.at + max(map(len, marks))]
            for mark in marks:
                if here.startswith(mark):
                    self.at += len(mark)
                    return mark
            if self.ended or not any(mark.startswith(here) for mark in marks):
                return ""
            yield

    def optional(self, mark: str) -> Reading[None]:
        """Read blanks and `mark` if it is there: what is whole without its closing mark is whole."""
        end = self.at
        yield from self.space()
        if not (yield from self.literal(mark)):
            self.at = end

    def until(self, *marks: str) -> Reading[tuple[str, str]]:
        """Read up to the nearest of `marks` and over it; return what came before, and the mark ("": the end)."""
        start = searched = self.at
        longest = max(map(len, marks))
        while True:
            places = [(at, mark) for mark in marks if (at := self.text.find(mark, searched)) >= 0]
            if places:
                at, mark = min(places)
                self.at = at + len(mark)
                return self.text[start:at], mark
            if self.ended:
                self.at = len(self.text)
                return self.text[start:], ""
            searched = max(start, len(self.text) - longest + 1)
            yield

    def json(self, first: str = "{[") -> Reading[str | None]:
        """Read one JSON value that begins with one of `first`; None as soon as it is none.

        Line ends inside strings are let through, as small models write them; `loaded` makes them right.
        """
        start = self.at
        if (yield from self.char()) not in first:
            return None
        closers: list[str] = []
        value = True  # what is due: a value, or else what follows one
        while True:
            if value:
                opened = yield from self._value(closers)
                if opened is None or len(closers) > MAX_DEPTH:
                    return None
                value = opened
            else:
                more = yield from self._after(closers)
                if more is None:
                    return None
                value = more
            if not closers and not value:
                return self.text[start : self.at]

    def _value(self, closers: list[str]) -> Reading[bool | None]:
        """Read a scalar or what opens a container; return whether another value is due, None for neither."""
        yield from self.space()
        char = yield from self.char()
        if char == "[":
            self.at += 1
            closers.append("]")
            yield from self.space()
            return (yield from self.char()) != "]"
        if char == "{":
            self.at += 1
            closers.append("}")
            yield from self.space()
            if (yield from self.char()) == "}":
                return False
            return True if (yield from self._key()) else None
        if char == '"':
            return False if (yield from self._string()) else None
        word = yield from self._matched(_WORD)
        return False if _SCALAR.fullmatch(word) else None

    def _after(self, closers: list[str]) -> Reading[bool | None]:
        """Read what follows a value in its container; return whether another value is due, None for neither."""
        yield from self.space()
        char = yield from self.char()
        if char == closers[-1]:
            self.at += 1
            closers.pop()
            return False
        if char != ",":
            return None
        self.at += 1
        if closers[-1] == "}":
            yield from self.space()
            return True if (yield from self._key()) else None
        return True

    def _key(self) -> Reading[bool]:
        if not (yield from self._string()):
            return False
        yield from self.space()
        return bool((yield from self.literal(":")))

    def _string(self) -> Reading[bool]:
        if not (yield from self.literal('"')):
            return False
        while True:
            match = _STRING_STOP.search(self.text, self.at)
            if match is None:
                self.at = len(self.text)
                if self.ended:
                    return False
                yield
            elif match.group() == '"':
                self.at = match.end()
                return True
            else:
                self.at = match.end()
                if not (yield from self.char()):
                    return False
                self.at += 1


BROKEN: Any = object()  # of a reader of values: it is none


def items(source: TextSource, close: str, item: Callable[[], Reading[Any]]) -> Reading[Any]:
    """Read what is between the bracket here and `close`, with commas between; BROKEN if it is not a list of `item`."""
    source.at += 1
    out: list[Any] = []
    yield from source.space()
    while not (yield from source.literal(close)):
        value = yield from item()
        yield from source.space()
        if value is BROKEN or not ((yield from source.literal(",")) or (yield from source.char()) == close):
            return BROKEN
        out.append(value)
        yield from source.space()
    return out


def loaded(raw: str | None) -> Any:
    """Return the value of JSON text that a model wrote, line ends in strings forgiven; None if it is none."""
    try:
        return None if raw is None else json.loads(raw, strict=False)
    except (ValueError, RecursionError):
        return None


def dumped(value: Any) -> str:
    """Write JSON, readable where it can be: half a surrogate pair stays an escape."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
