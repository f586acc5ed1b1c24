"""A gateway.toml in the making: tables with remarks, and what could not be taken over; written as TOML.

Knows TOML's spelling; knows no other program. Path: convert/litellm.py -> GatewayDraft.text -> cli/gateway.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_UNCLEAN = re.compile(r"[^\w.:/@+-]+", re.ASCII)


@dataclass(slots=True)
class GatewayDraftTable:
    """One table: its values in their order, and the remarks above it."""

    values: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass(slots=True)
class GatewayDraft:
    """The tables by section and name. `left`: what was not taken over, a line each."""

    origin: str
    sections: dict[str, dict[str, GatewayDraftTable]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def table(self, section: str, name: str) -> GatewayDraftTable:
        """Return a table, made if it is not there."""
        return self.sections.setdefault(section, {}).setdefault(name, GatewayDraftTable())

    def free(self, section: str, name: str) -> str:
        """Return `name` as the file may write it, with a number if it is taken."""
        clean = _UNCLEAN.sub("-", name).strip("-./:@+")[:120] or "unnamed"
        taken = self.sections.get(section, {})
        numbered = (clean if i == 1 else f"{clean}-{i}" for i in range(1, len(taken) + 2))
        return next(each for each in numbered if each not in taken)

    def leave(self, what: str) -> None:
        """Note what was not taken over, once."""
        if what not in self.left:
            self.left.append(what)

    def text(self) -> str:
        """Return the file."""
        lines = [f"# Made from {_line(self.origin)} by: freehold gateway convert"]
        if self.left:
            lines += ["#", "# Not taken over:", *(f"# - {_line(each)}" for each in self.left)]
        for section, tables in self.sections.items():
            for name, table in tables.items():
                lines += ["", *(f"# {_line(each)}" for each in table.remarks), f"[{section}.{_key(name)}]"]
                lines += [f"{_key(key)} = {_value(value)}" for key, value in table.values.items()]
        return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    r"""Return a basic string: JSON's escapes are TOML's, but for DEL and halves of a pair, which no text here needs."""
    return json.dumps(
        "".join(c for c in text if c != "\x7f" and not 0xD800 <= ord(c) < 0xE000), ensure_ascii=False
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return _string(value) if isinstance(value, str) else str(value)
