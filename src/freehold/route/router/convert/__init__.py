"""Other proxies' configurations, turned into gateway.toml: what fits, and a list of what does not.

From another program's YAML comes a GatewayDraft: tables with remarks, and what could not be taken over. YAML is read
safely: plain values only, no object is made. Knows YAML and TOML's spelling; a file for each program knows its words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from freehold.base.errors import UsageError
from freehold.route.router.toml.table import EXTRA

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
        lines = [f"# Generated from {_line(self.origin)} by: freehold gateway convert"]
        if self.left:
            lines += ["#", "# Not converted:", *(f"# - {_line(each)}" for each in self.left)]
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
    written = "".join(c for c in text if c != "\x7f" and not 0xD800 <= ord(c) < 0xE000)
    return json.dumps(written, ensure_ascii=False)


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


# --- values of a document that may hold anything anywhere -------------------------------------------


def as_table(value: Any) -> Mapping[str, Any]:
    """Return a table; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_rows(value: Any) -> list[Mapping[str, Any]]:
    """Return the tables of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """Return a string or a number as text; "" for anything else."""
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def as_texts(value: Any) -> list[str]:
    """Return the texts of a list, or of one value."""
    each: Iterable[Any] = value if isinstance(value, list) else [value]
    return [text for one in each if (text := as_text(one))]


def as_seconds(value: Any) -> float:
    """Return seconds above zero, and at most a day; 0 for anything else."""
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return min(float(value), 86400.0) if sound else 0.0


def duration(seconds: float) -> str:
    """Return seconds as gateway.toml writes them."""
    return f"{max(1, round(seconds * 1000))}ms" if seconds < 1 or seconds % 1 else f"{int(seconds)}s"


# --- YAML -------------------------------------------------------------------------------------------

MOST_BYTES = 1 << 20


def read_yaml(path: Path) -> Any:
    """Return what a file holds. Raises UsageError, which names the line and quotes nothing."""
    try:
        import yaml
    except ImportError:
        raise UsageError("reading YAML needs the package pyyaml", EXTRA) from None
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "its name is not valid"
        raise UsageError(f"{path} cannot be read: {why}", "name a config.yaml") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} is longer than {MOST_BYTES:,} bytes", "name the config.yaml of a proxy")
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(e, "problem", None) or "it cannot be parsed"
        hint = "correct it, or take out what is wrong"
        raise UsageError(f"{path} is not YAML{where}: {problem}", hint) from None
