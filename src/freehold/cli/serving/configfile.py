"""Adds keys and tables to config.toml and takes tables away; every other line stays as it is, comments too.

A table is written at the file's end and removed from its header to the next one. What would come of an edit is parsed
before it is written, and an edit that would change anything else is refused. Knows TOML's lines; knows no setting.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold.base import private
from freehold.base.errors import StoreError, UsageError

_HEADER = re.compile(r"\s*\[")
_NOTHING = re.compile(r"\s*(#|$)")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def set_key(path: Path, home: Path, key: str, value: str) -> None:
    """Write `key = value` before the tables, in the place of an earlier value. Raises UsageError, StoreError."""
    lines = _text(path).splitlines(keepends=True)
    before = tomllib.loads("".join(lines))
    head = next((i for i, line in enumerate(lines) if _HEADER.match(line)), len(lines))
    earlier = re.compile(rf"\s*{re.escape(key)}\s*=")
    kept = [line for i, line in enumerate(lines) if i >= head or not earlier.match(line)]
    _write(path, home, "".join([f"{key} = {_value(value)}\n", *kept]), {**before, key: value})


def add_table(path: Path, home: Path, name: tuple[str, str], values: Mapping[str, Any]) -> None:
    """Write `[a.b]` with `values`: texts, flags, lists and tables of texts. Raises UsageError, StoreError."""
    old = _text(path)
    before = tomllib.loads(old)
    lines = [f"[{name[0]}.{name[1]}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    gap = "" if not old else "\n" if old.endswith("\n") else "\n\n"
    new = old + gap + "\n".join(lines) + "\n"
    after = {**before, name[0]: {**before.get(name[0], {}), name[1]: dict(values)}}
    _write(path, home, new, after)


def remove_table(path: Path, home: Path, name: tuple[str, str]) -> None:
    """Remove `[a.b]`, and its tables `[a.b.c]`. Raises UsageError, StoreError."""
    lines = _text(path).splitlines(keepends=True)
    before = tomllib.loads("".join(lines))
    header = re.compile(rf"\s*\[\s*{name[0]}\s*\.\s*(['\"]?){re.escape(name[1])}\1\s*[.\]]")
    kept: list[str] = []
    table: list[str] = []
    inside = False
    for line in lines:
        if _HEADER.match(line):
            was, inside = inside, header.match(line) is not None
            kept += _next_ones(table) if was and not inside else []
            table = []
        (table if inside else kept).append(line)
    kept += _next_ones(table)
    rest = {key: value for key, value in before.get(name[0], {}).items() if key != name[1]}
    after = {key: value for key, value in before.items() if key != name[0]}
    _write(path, home, "".join(kept), after | ({name[0]: rest} if rest else {}))


def _next_ones(table: list[str]) -> list[str]:
    """Return the comments at a table's end that a blank line parts from it: those before the next table."""
    end = len(table)
    while end and _NOTHING.match(table[end - 1]):
        end -= 1
    blank = next((i for i in range(end, len(table)) if not table[i].strip()), len(table))
    return table[blank + 1 :]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # with its own line ends
    except FileNotFoundError:
        return ""


def _write(path: Path, home: Path, text: str, meant: dict[str, Any]) -> None:
    try:
        right = tomllib.loads(text) == meant
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise UsageError(f"{path} is written in a way that this command does not change", "edit it by hand")
    private.folder(home)
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb", opener=private.opener) as file:
            file.write(text.encode("utf-8"))
        new.replace(path)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror}") from e


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        names = {name: name if _BARE.fullmatch(name) else _value(name) for name in value}
        return "{" + ", ".join(f"{names[name]} = {_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's escapes are TOML's, but for the delete character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
