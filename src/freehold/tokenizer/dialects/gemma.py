"""Gemma: version 3 has no marks, so its prompt asks for JSON; version 4 writes <|tool_call>call:NAME{...}.

Version 4 spells its arguments in a notation of its own: keys without quotes, strings between <|"|>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from freehold.tokenizer.dialects.contract import (
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    arguments_text,
    is_name,
    listed,
)
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.hermes import BARE, read_bare
from freehold.tokenizer.dialects.llama import FORM as LLAMA_FORM
from freehold.tokenizer.dialects.notation import QUOTE, arguments
from freehold.tokenizer.dialects.source import MAX_DEPTH, Reading, TextSource, loaded
from freehold.types import Tool

OPEN, CLOSE = "<|tool_call>", "<tool_call|>"
_BROKEN = object()
_SCALAR = re.compile(r"[-+.\w]*")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read one call of version 4."""
    if not (yield from source.literal("call:")):
        return None
    name, _ = yield from source.until("{", "\n", "<")
    if not is_name(name):
        return None
    source.at -= 1
    arguments = yield from _value(source, 0)
    if not isinstance(arguments, dict):
        return None
    yield from source.optional(CLOSE)
    return [Call(name, arguments_text(arguments))]


def _value(source: TextSource, depth: int) -> Reading[Any]:
    """Read a value; _BROKEN if it is none."""
    yield from source.space()
    if depth > MAX_DEPTH:
        return _BROKEN
    if (yield from source.literal(QUOTE)):
        text, mark = yield from source.until(QUOTE)
        return text if mark else _BROKEN
    char = yield from source.char()
    if char == "{":
        return (yield from _object(source, depth))
    if char == "[":
        return (yield from _list(source, depth))
    word = yield from source.word(_SCALAR)
    if word in _WORDS:
        return _WORDS[word]
    return loaded(word) if _NUMBER.fullmatch(word) and len(word) < 400 else _BROKEN


def _object(source: TextSource, depth: int) -> Reading[Any]:
    source.at += 1
    out: dict[str, Any] = {}
    yield from source.space()
    while not (yield from source.literal("}")):
        if (yield from source.literal(QUOTE)):
            key, mark = yield from source.until(QUOTE)
            mark = mark and (yield from source.literal(":"))
        else:
            key, mark = yield from source.until(":", "}", "\n")
            key = key.strip()
        value = (yield from _value(source, depth + 1)) if mark in (":", QUOTE) else _BROKEN
        yield from source.space()
        if value is _BROKEN or not ((yield from source.literal(",")) or (yield from source.char()) == "}"):
            return _BROKEN
        out[key] = value
        yield from source.space()
    return out


def _list(source: TextSource, depth: int) -> Reading[Any]:
    source.at += 1
    out: list[Any] = []
    yield from source.space()
    while not (yield from source.literal("]")):
        value = yield from _value(source, depth + 1)
        yield from source.space()
        if value is _BROKEN or not ((yield from source.literal(",")) or (yield from source.char()) == "]"):
            return _BROKEN
        out.append(value)
        yield from source.space()
    return out


def _preamble(tools: Sequence[Tool]) -> str:
    return (
        f"You can call these functions:\n{listed(tools)}\n\nTo call one, answer with nothing but a JSON object "
        'of this form: {"name": "the function", "parameters": {its arguments}}\nElse answer as usual.'
    )


GEMMA3 = Dialect("gemma3", BARE, read_bare, preamble=_preamble, as_text=True, form=LLAMA_FORM)
FORM = CallForm(f"{OPEN}call:", "", CLOSE, between="", arguments=arguments)
GEMMA4 = Dialect("gemma4", (Opening(OPEN),), read, marks=(CLOSE, QUOTE), form=FORM)
