"""Reads the flags of llama.cpp's server from what `llama-server --help` prints.

    rows(text)         # as a file of data/ has them: [name, kind, {also, choices, status}]
    schema(text, version)

Its help is made for people: names up to the first gap, then what stands for a value, then words. What is not clear
(a number that may be a word) is taken as text: the server itself then has the last word.
Path: tools/engine_schema.py, llamacpp.py -> rows -> FlagSchema
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from freehold.backends.flags.schema import FlagSchema, schema_of

Row = list[Any]
_NAME = re.compile(r"(?:^|, )(--?[A-Za-z][\w-]*)")
_ALLOWED = re.compile(r"allowed values: ([\w, ]+)")
_DEFAULT = re.compile(r"\bdefault: (-?\d+(\.\d+)?)\b")


def schema(text: str, version: str) -> FlagSchema:
    """Return the flags that a binary prints, as a schema of its own."""
    return schema_of("llamacpp", version, rows(text))


def rows(text: str) -> list[Row]:
    """Return a row for each flag."""
    return [_row(spec, words) for spec, words in _entries(text)]


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield the part with the names and the words about it."""
    spec, words = "", list[str]()
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("-----"):
            if spec:
                yield spec, " ".join(words)
            parts = re.split(r"\s{2,}", re.sub(r",\s+", ", ", line.rstrip()), maxsplit=1)
            spec, words = parts[0], parts[1:]
        elif spec and line.startswith(" "):
            words.append(line.strip())
        elif spec:
            yield spec, " ".join(words)
            spec, words = "", []
    if spec:
        yield spec, " ".join(words)


def _row(spec: str, words: str) -> Row:
    names = _NAME.findall(spec)
    hint = spec[spec.rindex(names[-1]) + len(names[-1]) :].strip()
    plain = [n for n in names if n.startswith("--") and not n.startswith("--no-")]
    longest = [n for n in names if n.startswith("--")]
    name = (plain or longest or names)[0]
    kind, choices = _kind(names, hint, words)
    more: dict[str, Any] = {}
    if len(names) > 1:
        more["also"] = [n for n in names if n != name]
    if choices:
        more["choices"] = choices
    if "DEPRECATED" in words:
        more["status"] = "deprecated"
    return [name, kind, more] if more else [name, kind]


def _kind(names: list[str], hint: str, words: str) -> tuple[str, list[str]]:
    if not hint:
        return ("on-off" if any(n.startswith("--no-") for n in names) and len(names) > 1 else "switch"), []
    if hint[0] in "[{<" and hint[-1] in "]}>" and re.fullmatch(r"[\w|,.-]+", hint[1:-1]) and ".." not in hint:
        choices = re.split(r"[|,]", hint[1:-1])
        return "text", choices if len(choices) > 1 else []
    if allowed := _ALLOWED.search(words):
        return "text", [w.strip() for w in allowed[1].split(",") if w.strip()]
    if hint in ("N", "PORT") and (default := _DEFAULT.search(words)) and "'auto'" not in words:
        return ("float" if default[2] else "int"), []
    return "text", []
