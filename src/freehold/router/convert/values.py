"""Reads values of a document that may hold anything anywhere. Path: convert/litellm.py -> table, rows, text"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def table(value: Any) -> Mapping[str, Any]:
    """Return a table; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Mapping[str, Any]]:
    """Return the tables of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def text(value: Any) -> str:
    """Return a string or a number as text; "" for anything else."""
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def texts(value: Any) -> list[str]:
    """Return the texts of a list, or of one value."""
    each: Iterable[Any] = value if isinstance(value, list) else [value]
    return [string for one in each if (string := text(one))]


def seconds(value: Any) -> float:
    """Return seconds above zero, and at most a day; 0 for anything else."""
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return min(float(value), 86400.0) if sound else 0.0


def time(seconds: float) -> str:
    """Return seconds as gateway.toml writes them."""
    return f"{max(1, round(seconds * 1000))}ms" if seconds < 1 or seconds % 1 else f"{int(seconds)}s"
