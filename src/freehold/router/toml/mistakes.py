"""What is wrong with a gateway.toml: each mistake with its line, its key and the way out, all of them in one error.

Knows lines and keys; no rule of the file. A message never quotes what may be a secret: `shown` shortens values, and
fields that hold keys quote none.
Path: toml/table.py -> Mistakes.add -> BadGateway -> cli/main.py
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.errors import UsageError

MOST_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing that is wrong. `line` counts from 1; 0: the file as a whole."""

    line: int
    key: str  # providers.openai.kind; "" for the file as a whole
    message: str  # names the value and the limit
    hint: str  # the way out

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.key}{': ' if self.key else ''}{self.message}"


class BadGateway(UsageError):
    """A gateway.toml that is not sound. `mistakes` holds all of them, in the file's order."""

    def __init__(self, name: str, mistakes: tuple[Mistake, ...]) -> None:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        lines = "".join(
            f"\n  {each}" + (f"\n    hint: {each.hint}" if each.hint else "") for each in mistakes
        )
        super().__init__(
            f"{name} has {count}:{lines}", "freehold gateway check FILE reads it without a server"
        )
        self.name, self.mistakes = name, mistakes


@dataclass(slots=True)
class Mistakes:
    """Mistakes as they are found."""

    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    found: list[Mistake] = field(default_factory=list)

    def add(self, path: KeyPath, message: str, hint: str = "") -> None:
        """Note a mistake at a key; one that is not written is reported at the table that lacks it."""
        above = path
        while above and above not in self.lines:
            above = above[:-1]
        self.found.append(Mistake(self.lines.get(above, 0), spelled(path), message, hint))

    def check(self, name: str) -> None:
        """Raise BadGateway if anything was found."""
        if self.found:
            raise BadGateway(name, tuple(sorted(set(self.found))))


def spelled(path: KeyPath) -> str:
    """Return a key as TOML writes it: routes.chat.targets[0], models."gpt 5"."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
            continue
        bare = part.isascii() and part.replace("-", "a").replace("_", "a").isalnum()
        out += ("." if out else "") + (part if bare else shown(part))
    return out


def shown(value: object) -> str:
    """Return a value as messages quote it: on one line, and short."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
        text = f'"{text[:MOST_SHOWN]}…' + '"' if len(text) > MOST_SHOWN else f'"{text}"'
    elif isinstance(value, (dict, list)):
        text = "a table" if isinstance(value, dict) else f"an array of {len(value)}"
    else:
        text = str(value)
    return text if len(text) <= MOST_SHOWN + 3 else f"{text[:MOST_SHOWN]}…"


# --- finds the line of every key of a TOML text, which tomllib does not report ----------------------
# Scans a text that tomllib has accepted, so it checks no syntax and reads no value but quoted keys.

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
