"""Finds the line of every key of a TOML text, which tomllib does not report.

Scans a text that tomllib has accepted, so it checks no syntax and reads no value but quoted keys. Knows no meaning.
Path: reading.py -> line_numbers -> Mistakes
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]  # ("routes", "chat", "targets", 0)

_GAP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# Strings, the longest quotes first; then a number, a date or a word, which hold none of the characters that end them.
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def line_numbers(text: str) -> Mapping[KeyPath, int]:
    """Return the line, from 1, of each table, key and array item in `text`, which is valid TOML."""
    scan = _Scan(text.replace("\r\n", "\n"))
    scan.document()
    return scan.found


class _Scan:
    """A place in a text, and the lines found so far."""

    def __init__(self, text: str) -> None:
        self.found: dict[KeyPath, int] = {}
        self._text, self._at = text, 0
        self._starts = [0, *(m.end() for m in re.finditer("\n", text))]
        self._items: dict[tuple[str, ...], int] = {}  # of [[arrays of tables]]: tables so far

    def document(self) -> None:
        """Read all lines."""
        table: KeyPath = ()
        while self._skip(_GAP) < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> KeyPath:
        start, brackets = self._at, 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        keys = self._keys()
        self._at += brackets
        path: KeyPath = ()
        for depth, key in enumerate(keys, 1):
            path = (*path, key)
            if brackets == 2 and depth == len(keys):
                self._note(path, start)
                self._items[keys] = self._items.get(keys, -1) + 1
            if keys[:depth] in self._items:
                self._note(path, start)
                path = (*path, self._items[keys[:depth]])
            self._note(path, start)
        return path

    def _pair(self, table: KeyPath) -> None:
        start = self._at
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path, start)
        self._at += 1  # =
        self._skip(_BLANK)
        self._value(path)

    def _keys(self) -> tuple[str, ...]:
        keys: list[str] = []
        while True:
            self._skip(_BLANK)
            if bare := _BARE.match(self._text, self._at):
                keys.append(bare[0])
            else:
                bare = _STRING.match(self._text, self._at)
                keys.append(tomllib.loads(f"key = {bare[0]}")["key"] if bare else "")
            self._at = bare.end() if bare else self._at + 1
            if self._skip(_BLANK) >= len(self._text) or self._text[self._at] != ".":
                return tuple(keys)
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        opening = self._text[self._at : self._at + 1]
        if opening in ("[", "{"):
            self._at += 1
            self._inside(path, array=opening == "[")
        else:
            match = _STRING.match(self._text, self._at) or _SCALAR.match(self._text, self._at)
            self._at = match.end() if match else len(self._text)

    def _inside(self, path: KeyPath, *, array: bool) -> None:
        """Read an array's values or an inline table's pairs, to the bracket that closes it."""
        item = 0
        while self._skip(_GAP) < len(self._text) and self._text[self._at] not in "]}":
            if self._text[self._at] == ",":
                self._at += 1
            elif array:
                self._note((*path, item), self._at)
                self._value((*path, item))
                item += 1
            else:
                self._pair(path)
        self._at += 1

    def _skip(self, what: re.Pattern[str]) -> int:
        match = what.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return self._at

    def _note(self, path: KeyPath, start: int) -> None:
        self.found.setdefault(path, bisect_right(self._starts, start))
