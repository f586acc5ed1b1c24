"""One table of gateway.toml: every key is asked for once, with what it may hold; every mistake is noted with its line.

A wrong value is noted and its default returned, so that reading continues to the file's other mistakes. What a plain
field of a dataclass may hold, its annotation says (`TomlTable.fields`). A message never quotes what may be a secret:
`shown` shortens values, and fields that hold keys quote none. Knows types, ranges, times and lines; knows no meaning
of a key.

What the file refers to outside itself (environment variables, the keyring, stored models, the price table) is passed
in, so that tests and `freehold gateway check` choose their own.
"""

from __future__ import annotations

import os
import re
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.route.providers.contract import Kind
from freehold.route.router.price import Price

MOST_SHOWN = 60  # characters of a value in a message
NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]{0,127}")
_NAMES = "letters, digits and . _ : / @ + - only, 128 at most"
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WANTED = {str: "a string", bool: "true or false", int: "a whole number", list: "an array", dict: "a table"}

KeyPath = tuple[str | int, ...]  # ("routes", "chat", "targets", 0)


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
    """The mistakes of one file so far."""

    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    noted: list[Mistake] = field(default_factory=list)

    def add(self, path: KeyPath, message: str, hint: str = "") -> None:
        """Note a mistake at a key; one that is not written is reported at the table that lacks it."""
        above = path
        while above and above not in self.lines:
            above = above[:-1]
        self.noted.append(Mistake(self.lines.get(above, 0), spelled(path), message, hint))

    def unknown(self, path: KeyPath, what: str, name: str, known: Iterable[str], otherwise: str) -> None:
        """Note that there is no `what` of this name. The way out is the nearest of those known, or `otherwise`."""
        self.add(path, f"there is no {what} {shown(name)}", suggestion(name, [*known], otherwise))

    def check(self, name: str) -> None:
        """Raise BadGateway if anything was noted."""
        if self.noted:
            raise BadGateway(name, tuple(sorted(set(self.noted))))


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


@cache
def _declared(kind: type) -> dict[str, tuple[Any, Any]]:
    """Return the annotation and the default of each field of a dataclass; None where it has no default."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: (hints[f.name], None if f.default is MISSING else f.default) for f in fields(kind)}


class TomlTable:
    """A table at `path`."""

    def __init__(self, mistakes: Mistakes, path: KeyPath, values: Mapping[str, Any]) -> None:
        self.mistakes, self.path = mistakes, path
        self._values = values
        self._known: dict[str, None] = {}  # keys that were asked for, in their order

    def has(self, key: str) -> bool:
        """Return whether the key is written."""
        return key in self._values

    def skip(self, *keys: str) -> None:
        """Take keys as known whose values another mistake makes void."""
        self._known |= dict.fromkeys(keys)

    def bad(self, key: str, message: str, hint: str = "") -> None:
        """Note a mistake at a key, or at the table itself for ""."""
        self.mistakes.add((*self.path, key) if key else self.path, message, hint)

    def need(self, key: str, message: str, hint: str) -> None:
        """Note that a key is missing."""
        if not self.has(key):
            self.bad(key, message, hint)

    def end(self) -> None:
        """Note every key that was not asked for."""
        for key in self._values:
            if key not in self._known:
                hint = suggestion(key, [*self._known], f"known here: {', '.join(self._known)}")
                self.bad(key, "unknown key", hint)

    def value(self, key: str, *types: type) -> Any:
        """Return a value of one of `types`; None where it is not written, or of another type."""
        self._known[key] = None
        value = self._values.get(key)
        # A bool is an int to isinstance, and not to those who write the file.
        if value is None or type(value) in types:
            return value
        wanted = " or ".join(dict.fromkeys(_WANTED.get(t, "a number") for t in types))
        quoted = "the value" if key == "key" else shown(value)  # which may be a secret
        self.bad(key, f"{quoted} is not {wanted}", f"write {key} as {wanted}")
        return None

    # --- values ------------------------------------------------------------------------------------

    def fields(self, kind: type, *names: str) -> dict[str, Any]:
        """Return the values of plain fields of a dataclass, each within what its annotation says.

        The key of a field is its name; one of seconds, `timeout_s`, is written as timeout = "60s". Where none is
        written it has the field's default.
        """
        declared = _declared(kind)
        return {name: self._field(name, *declared[name]) for name in names}

    def _field(self, name: str, hint: Any, default: Any) -> Any:
        if name.endswith("_s"):
            return self.seconds(name.removesuffix("_s"), default)
        if hint is bool:
            return self.flag(name, default)
        if get_origin(hint) is Literal:
            return self.choice(name, get_args(hint), default or "")
        type_, limits = get_args(hint)
        if type_ is int:
            return self.whole(name, default, limits.ge, limits.le)
        return self.share(name, default or 0.0, zero=limits.gt is None)

    def text(self, key: str) -> str:
        """Return a string that is not empty; "" where none is written."""
        value = self.value(key, str)
        if value is not None and not value.strip():
            self.bad(key, "the string is empty", "write a value, or leave the key out")
        return (value or "").strip()

    def choice(self, key: str, choices: Sequence[str], default: str = "") -> str:
        """Return one of `choices`."""
        value = self.text(key)
        if not value or value in choices:
            return value or default
        hint = suggestion(value, [*choices], f"one of: {', '.join(choices)}")
        self.bad(key, f"{shown(value)} is not a known {key}", hint)
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.value(key, bool)
        return default if value is None else value

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number within low..high."""
        value = self.value(key, int)
        if value is None:
            return default
        if low <= value <= high:
            return value
        problem = f"{shown(value)} is not within {low:,}..{high:,}"
        self.bad(key, problem, f"write a number from {low} to {high}")
        return default

    def number(self, key: str) -> Decimal | None:
        """Return a finite number, exactly as it is written."""
        value = self.value(key, int, Decimal)
        if value is None:
            return None
        value = Decimal(value)
        if value.is_finite():
            return value
        self.bad(key, f"{shown(value)} is not a finite number", "write an amount such as 0.5")
        return None

    def share(self, key: str, default: float, *, zero: bool = True) -> float:
        """Return a number within 0..1; `zero` False: above 0."""
        value = self.number(key)
        if value is None:
            return default
        if 0 <= value <= 1 and (zero or value):
            return float(value)
        above = "0..1" if zero else "0..1, above 0"
        self.bad(key, f"{shown(value)} is not within {above}", "write a share such as 0.02; 1 is all")
        return default

    def seconds(self, key: str, default: float) -> float:
        """Return a time above zero, written as 500ms, 60s, 5m, 1h or 1d."""
        value = self.value(key, str, int, Decimal)
        if value is None:
            return default
        match = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            self.bad(key, f"{shown(value)} is not a duration", 'write "500ms", "60s", "5m" or "1h"')
            return default
        seconds = float(match[1]) * _UNITS[match[2]]
        if 0 < seconds <= 30 * 86400:
            return seconds
        self.bad(key, f"{shown(value)} is not above zero and at most 30 days", 'write a time such as "60s"')
        return default

    def placed(self, key: str) -> list[tuple[KeyPath, str]]:
        """Return an array's different strings that are not empty, each with its place."""
        value = self.value(key, list) or ()
        places: dict[str, KeyPath] = {}
        for i, each in enumerate(value):
            at = (*self.path, key, i)
            if not isinstance(each, str) or not each.strip():
                self.mistakes.add(at, f"{shown(each)} is not a name", "write a string in quotes")
            elif each in places:
                self.mistakes.add(at, f"{shown(each)} is listed twice", "write it once")
            else:
                places[each] = at
        return [(at, name) for name, at in places.items()]

    def placed_or_one(self, key: str) -> list[tuple[KeyPath, str]]:
        """Return the names of a key that may be one string or an array of them."""
        if isinstance(self._values.get(key), str):
            text = self.text(key)
            return [((*self.path, key), text)] if text else []
        return self.placed(key)

    # --- tables ------------------------------------------------------------------------------------

    def table(self, key: str) -> TomlTable | None:
        """Return a table inside this one."""
        value = self.value(key, dict)
        return None if value is None else TomlTable(self.mistakes, (*self.path, key), value)

    def tables(self, key: str) -> Iterator[tuple[str, TomlTable]]:
        """Yield the tables by name inside a table of tables; what the caller asked none of them for is unknown."""
        inside = self.table(key)
        for name in inside._values if inside is not None else ():
            if inside is not None and (table := inside.table(name)) is not None:
                yield name, table
                table.end()

    def check_name(self, name: str) -> None:
        """Note a name of this table that requests and other tables cannot write."""
        if not NAME.fullmatch(name):
            self.bad("", f"{shown(name)} is not a valid name", _NAMES)


# --- finds the line of every key of a TOML text, which tomllib does not report ----------------------
# Scans a text that tomllib has accepted, so it checks no syntax and reads no value but quoted keys.

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
    return scan.lines


class _Scan:
    """A place in a text, and the lines found so far."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
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
        self.lines.setdefault(path, bisect_right(self._starts, start))


# --- what the file refers to -----------------------------------------------------------------------

EXTRA = "pip install 'freehold[gateway]' brings it"


def _from_keyring(name: str) -> str | None:
    """Return a password of the service `freehold` in the system's keyring; None: there is none, or no keyring."""
    try:
        import keyring
    except ImportError:
        return None
    try:
        return keyring.get_password("freehold", name)
    except Exception:  # each system's keyring has errors of its own, and none of them gives a key
        return None


def _listed(kind: Kind, model: str) -> Price | None:
    from freehold.route.router.price import resolve  # the table takes half a second to load

    return resolve(kind, model)


def _sold(seller: str, model: str) -> Price | None:
    from freehold.route.router.price import resolve_at

    return resolve_at(seller, model)


@dataclass(frozen=True, slots=True)
class Outside:
    """Where names in the file lead. `has_model` None: not looked up."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    keyring: Callable[[str], str | None] = _from_keyring
    price_of: Callable[[Kind, str], Price | None] = _listed
    price_at: Callable[[str, str], Price | None] = _sold  # seller of the table, model
    has_model: Callable[[str], bool] | None = None  # whether this machine's store holds it
    offline: bool = False  # the user forbids calls beyond private addresses
    folder: Path = Path()  # that relative paths of the file begin at


# --- the environment as gateway.toml reads it -------------------------------------------------------
# Variables that hold a key are taken out of the process's own.
# So no engine, scorer or other child process is given a provider's key, and /proc/PID/environ does not show
# it. Knows names of variables; prints no value.


class KeptEnvironment(Mapping[str, str]):
    """A view of the environment that remembers which variables were read, and can hide them."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._kept: dict[str, str] = {}
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> str:
        value = self._environ[name] if name in self._environ else self._kept[name]
        self._read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._environ or name in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter({**self._kept, **self._environ})

    def __len__(self) -> int:
        return len({**self._kept, **self._environ})

    def __repr__(self) -> str:
        return f"KeptEnvironment({len(self._kept)} hidden)"

    def whole(self) -> dict[str, str]:
        """Return all variables, the hidden ones too, uncounted: for a process that opens this gateway itself."""
        return {**self._environ, **self._kept}

    def hide(self) -> None:
        """Take what was read out of the environment; it is still found here, at the next reading of the file."""
        for name in self._read & self._environ.keys():
            self._kept[name] = self._environ[name]
            if self._environ is os.environ:
                _wipe(name)
            del self._environ[name]


def _wipe(name: str) -> None:
    """Overwrite a value where the system put it at the start: unsetting a variable leaves its bytes in the process."""
    import ctypes

    getenv = ctypes.CDLL(None).getenv
    getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if address := getenv(os.fsencode(name)):
        ctypes.memset(address, ord("*"), len(ctypes.string_at(address)))
