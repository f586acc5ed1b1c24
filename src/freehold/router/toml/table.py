"""One table of gateway.toml: every key is asked for once, with what it may hold; the others are unknown.

A wrong value is noted and its default returned, so that reading continues to the file's other mistakes. Knows types,
ranges and times; knows no meaning of a key.
Path: toml/providers.py, toml/routes.py -> TomlTable -> Mistakes
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from freehold.config import nearest
from freehold.router.toml.mistakes import KeyPath, Mistakes, shown

_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WANTED = {str: "a string", bool: "true or false", int: "a whole number", list: "an array", dict: "a table"}


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

    def end(self) -> None:
        """Note every key that was not asked for."""
        for key in self._values:
            if key not in self._known:
                near = nearest(key, [*self._known])
                hint = f"did you mean {near}?" if near else f"known here: {', '.join(self._known)}"
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

    def text(self, key: str, default: str = "") -> str:
        """Return a string that is not empty."""
        value = self.value(key, str)
        if value is not None and not value.strip():
            self.bad(key, "the string is empty", "write a value, or leave the key out")
        return value.strip() if value and value.strip() else default

    def choice(self, key: str, choices: Sequence[str], default: str = "") -> str:
        """Return one of `choices`."""
        value = self.text(key)
        if not value or value in choices:
            return value or default
        near = nearest(value, [*choices])
        hint = f"did you mean {near}?" if near else f"one of: {', '.join(choices)}"
        self.bad(key, f"{shown(value)} is not a known {key}", hint)
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.value(key, bool)
        return default if value is None else value

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number within low..high."""
        value = self.value(key, int)
        if value is None or low <= value <= high:
            return default if value is None else value
        self.bad(
            key, f"{shown(value)} is not within {low:,}..{high:,}", f"write a number from {low} to {high}"
        )
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
        good: dict[str, KeyPath] = {}
        for i, each in enumerate(value):
            at = (*self.path, key, i)
            if not isinstance(each, str) or not each.strip():
                self.mistakes.add(at, f"{shown(each)} is not a name", "write a string in quotes")
            elif each in good:
                self.mistakes.add(at, f"{shown(each)} is listed twice", "write it once")
            else:
                good[each] = at
        return [(at, name) for name, at in good.items()]

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
        """Yield the tables by name inside a table of tables."""
        inside = self.table(key)
        for name in inside._values if inside is not None else ():
            if inside is not None and (table := inside.table(name)) is not None:
                yield name, table
