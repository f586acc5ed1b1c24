"""Gemma: version 3 has no marks, so its prompt asks for JSON; version 4 writes <|tool_call>call:NAME{...}.

Version 4 spells its arguments in a notation of its own: keys without quotes, strings between <|"|>.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from freehold.base.types import Tool
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
    listed,
    loaded,
)
from freehold.run.tokenizer.dialects.grammar import QUOTE, CallForm, arguments
from freehold.run.tokenizer.dialects.json_calls import BARE, LLAMA_FORM, read_bare

OPEN, CLOSE = "<|tool_call>", "<tool_call|>"
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
    """Read a value; BROKEN if it is none."""
    yield from source.space()
    if depth > MAX_DEPTH:
        return BROKEN
    if (yield from source.literal(QUOTE)):
        text, mark = yield from source.until(QUOTE)
        return text if mark else BROKEN
    char = yield from source.char()
    if char == "{":
        pairs = yield from items(source, "}", lambda: _pair(source, depth))
        return BROKEN if pairs is BROKEN else dict(pairs)
    if char == "[":
        return (yield from items(source, "]", lambda: _value(source, depth + 1)))
    word = yield from source.word(_SCALAR)
    if word in _WORDS:
        return _WORDS[word]
    return loaded(word) if _NUMBER.fullmatch(word) and len(word) < 400 else BROKEN


def _pair(source: TextSource, depth: int) -> Reading[Any]:
    """Read a key, quoted or not, and its value."""
    if (yield from source.literal(QUOTE)):
        key, mark = yield from source.until(QUOTE)
        mark = mark and (yield from source.literal(":"))
    else:
        key, mark = yield from source.until(":", "}", "\n")
        key = key.strip()
    value = (yield from _value(source, depth + 1)) if mark == ":" else BROKEN
    return BROKEN if value is BROKEN else (key, value)


def _preamble(tools: Sequence[Tool]) -> str:
    return (
        f"You can call these functions:\n{listed(tools)}\n\nTo call one, answer with nothing but a JSON object "
        'of this form: {"name": "the function", "parameters": {its arguments}}\nElse answer as usual.'
    )


GEMMA3 = Dialect("gemma3", BARE, read_bare, preamble=_preamble, as_text=True, form=LLAMA_FORM)
FORM = CallForm(f"{OPEN}call:", "", CLOSE, between="", arguments=arguments)
GEMMA4 = Dialect("gemma4", (Opening(OPEN),), read, marks=(CLOSE, QUOTE), form=FORM)
