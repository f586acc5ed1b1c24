"""Calls as Python writes them, LFM2's: [name(key='text', other=[1, True, None]), ...] between marks.

Read are Python's literals and JSON's words; written are strings in double quotes with JSON's escapes, which both know.
Other families' raw values may be such literals too (marked.py), where their templates print a dictionary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from string import hexdigits
from typing import Any

from freehold.base.errors import UsageError
from freehold.run.tokenizer.dialects.contract import (
    BROKEN,
    MAX_DEPTH,
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    Reading,
    TextSource,
    arguments_text,
    is_name,
    items,
    loaded,
)
from freehold.run.tokenizer.dialects.grammar import CallForm, Rules, Spell, members, whole

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_SCALAR = re.compile(r"[-+.\w]*")
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_NAME = re.compile(r"[\w.\-]*")
_KEY = re.compile(r"\w*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "/": "/", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}


# --- reading ----------------------------------------------------------------------------------------------


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read a list of calls."""
    yield from source.space()
    if not (yield from source.literal("[")):
        return None
    calls: list[Call] = []
    while True:
        yield from source.space()
        name = yield from source.word(_NAME)
        arguments = (yield from _keywords(source)) if is_name(name) else None
        if arguments is None:
            return None
        calls.append(Call(name, arguments_text(arguments)))
        yield from source.space()
        mark = yield from source.literal(",", "]")
        if not mark:
            return None
        if mark == "]":
            yield from source.optional(CLOSE)
            return calls


def _keywords(source: TextSource) -> Reading[dict[str, Any] | None]:
    """Read a call's parentheses and the arguments in them."""

    def pair() -> Reading[Any]:
        key = yield from source.word(_KEY)
        yield from source.space()
        value = (yield from literal(source)) if key and (yield from source.literal("=")) else BROKEN
        return BROKEN if value is BROKEN else (key, value)

    pairs = (yield from items(source, ")", pair)) if (yield from source.char()) == "(" else BROKEN
    return None if pairs is BROKEN else dict(pairs)


def literal(source: TextSource, depth: int = 0) -> Reading[Any]:
    """Read a literal of Python's; BROKEN if it is none."""
    yield from source.space()
    char = yield from source.char()
    if depth > MAX_DEPTH or not char:
        return BROKEN
    if char in "'\"":
        return (yield from _text(source, char))
    if char in "[(":
        close = "]" if char == "[" else ")"
        return (yield from items(source, close, lambda: literal(source, depth + 1)))
    if char == "{":
        pairs = yield from items(source, "}", lambda: _pair(source, depth))
        return BROKEN if pairs is BROKEN else dict(pairs)
    word = yield from source.word(_SCALAR)
    if word in _WORDS:
        return _WORDS[word]
    if not _NUMBER.fullmatch(word) or len(word) > 400:
        return BROKEN
    return loaded(word) if not re.search(r"\.(?!\d)|^-?0\d", word) else float(word)


def _text(source: TextSource, quote: str) -> Reading[Any]:
    source.at += 1
    out: list[str] = []
    while True:
        piece, mark = yield from source.until(quote, "\\")
        out.append(piece)
        if mark == quote:
            return _paired("".join(out))
        char = (yield from source.char()) if mark else ""
        if not char:
            return BROKEN
        source.at += 1
        plain = char if char in "\\'\"" else "\\" + char
        out.append((yield from _coded(source, char)) if char in _HEX else _ESCAPES.get(char, plain))


def _coded(source: TextSource, kind: str) -> Reading[str]:
    """Read a character given by its code; anything else stays as it is."""
    digits = ""
    while len(digits) < _HEX[kind]:
        char = yield from source.char()
        if not char or char not in hexdigits:
            break
        digits += char
        source.at += 1
    code = int(digits, 16) if len(digits) == _HEX[kind] else -1
    return chr(code) if 0 <= code <= 0x10FFFF else f"\\{kind}{digits}"


def _paired(text: str) -> str:
    """Join halves of surrogate pairs, as JSON escapes write them."""
    if not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _pair(source: TextSource, depth: int) -> Reading[Any]:
    """Read a key and a value of a dictionary."""
    key = yield from literal(source, depth + 1)
    yield from source.space()
    known = isinstance(key, str) and (yield from source.literal(":"))
    value = (yield from literal(source, depth + 1)) if known else BROKEN
    return BROKEN if value is BROKEN else (key, value)


def value_of(text: str) -> Any:
    """Return the value of a text that is one literal; BROKEN for any other."""
    source = TextSource()
    source.text, source.ended = text.strip(), True
    reading = literal(source)
    try:
        next(reading)
    except StopIteration as end:
        return end.value if source.at == len(source.text) else BROKEN
    raise AssertionError("an ended text asks for more")  # our own invariant


# --- writing ----------------------------------------------------------------------------------------------


class _PythonRules(Rules):
    comma, colon = '", "', '": "'

    def keywords(self) -> str:
        """Return the rule for the arguments in a call's parentheses."""
        return self._fields(self.root, 0, named=True)

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        words = {"boolean": '"True" | "False"', "null": '"None"'}
        return self._rule(words[kind]) if kind in words else super()._of_kind(kind, schema, depth)

    def _text(self, schema: Mapping[str, Any]) -> str:
        kept = {key: schema[key] for key in ("pattern", "minLength", "maxLength") if key in schema}
        return self._rule(f"%json {json.dumps({'type': 'string', **kept})}")

    def _key(self, name: str) -> str:
        return self._quoted(name)

    def _other(self, names: Iterable[str], *, named: bool = False) -> str:
        spelled: Callable[[str], str] = str if named else lambda name: f'"{name}"'
        but = "".join(f" & ~{json.dumps(spelled(name))}" for name in names)
        rule, word = self._next().upper(), "[A-Za-z_][A-Za-z0-9_]*"
        self.lines.append(f"{rule}: /{spelled(word)}/{but}")
        return rule

    def _constant(self, value: object) -> str:
        if value is None or isinstance(value, bool):
            return json.dumps(str(value))
        return super()._constant(value)

    def _quoted(self, text: str) -> str:
        return json.dumps(json.dumps(text, ensure_ascii=False), ensure_ascii=False)


def _arguments(rule: str, parameters: Mapping[str, object], spell: Spell) -> list[str]:
    """Return the rule of keyword arguments that fit `parameters`. Raises UsageError for what none keeps."""
    for name, _, _ in members(parameters):
        if not name.isidentifier():
            raise UsageError(f"{name!r} cannot be the name of a keyword argument")
    rules = _PythonRules(rule, whole(parameters), spell)
    return rules.all(rule, rules.keywords)


LFM2 = Dialect(
    "lfm2",
    (Opening(OPEN),),
    read,
    marks=(CLOSE,),
    form=CallForm("", "(", ")", f"{OPEN}[", ", ", f"]{CLOSE}", arguments=_arguments),
)
