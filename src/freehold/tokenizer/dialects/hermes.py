"""Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one pair of marks for each call.

Small models of the family often leave the marks out, so a JSON object alone, or in a fence, is a call too: as the
first thing of a line, with the name first, if it is the name of a tool that was given. Anything else stays text.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from freehold.tokenizer.dialects.contract import Call, Calls, Dialect, Offer, Opening, call_of
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.source import Reading, TextSource, loaded

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FENCE = "```"
_LANGUAGE = re.compile(r"\w*")
BARE = (Opening("{", at_line=True), Opening(_FENCE, at_line=True))


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read one call after `opening`."""
    if opening != OPEN:
        return (yield from read_bare(source, opening, offer))
    yield from source.space()
    call = call_of(loaded((yield from source.json("{"))))
    if call is None:
        return None
    yield from source.optional(CLOSE)
    return [call]


def read_bare(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read an object without marks or in a fence that names an offered tool."""
    if opening == _FENCE:
        yield from source.word(_LANGUAGE)
        yield from source.space()
        if not (yield from source.literal("{")):
            return None
    source.at -= 1
    call = yield from named_call(source, offer)
    if call is not None and opening == _FENCE:
        yield from source.optional(_FENCE)
    return None if call is None else [call]


def named_call(source: TextSource, offer: Offer) -> Generator[None, None, Call | None]:
    """Read an object whose first key is the name of a tool in `offer`; give up with the first other character."""
    start = source.at
    for expected in ("{", '"name"', ":"):
        yield from source.space()
        if not (yield from source.literal(expected)):
            return None
    yield from source.space()
    if not (yield from source.literal(*(f'"{name}"' for name in offer))):
        return None
    source.at = start
    value: Any = loaded((yield from source.json("{")))
    if value is None or not value.keys() <= {"name", "arguments", "parameters", "type"}:
        return None
    return call_of(value)


OBJECT = CallForm('{"name": "', '", "arguments": ', "}")  # a call as an object
FORM = CallForm(f"{OPEN}\n{OBJECT.head}", OBJECT.middle, f"{OBJECT.tail}\n{CLOSE}", between="\n")
HERMES = Dialect("hermes", (Opening(OPEN), *BARE), read, marks=(CLOSE,), form=FORM, bare=OBJECT)
