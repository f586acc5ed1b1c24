"""Kimi K2: a section of calls, each functions.NAME:NUMBER and an object between marks of their own."""

from __future__ import annotations

import re

from freehold.run.tokenizer.dialects.contract import (
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    Reading,
    TextSource,
    call_here,
    is_name,
)
from freehold.run.tokenizer.dialects.grammar import CallForm

OPEN, CLOSE = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_NUMBER = re.compile(r":\d+\Z")


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read all calls of an answer."""
    calls: list[Call] = []
    while True:
        yield from source.space()
        if not (yield from source.literal(CALL)):
            break
        header, mark = yield from source.until(ARGUMENTS, CALL_END, "\n")
        name = _NUMBER.sub("", header.strip().removeprefix("functions."))
        if mark != ARGUMENTS or not is_name(name):
            return None
        yield from source.space()
        call = yield from call_here(source, name)
        if call is None:
            return None
        calls.append(call)
        yield from source.optional(CALL_END)
    if calls:
        yield from source.optional(CLOSE)
    return calls


KIMI = Dialect(
    "kimi",
    (Opening(OPEN),),
    read,
    marks=(CLOSE, CALL, ARGUMENTS, CALL_END),
    form=CallForm(
        f"{CALL}functions.",
        ARGUMENTS,
        CALL_END,
        before=OPEN,
        between="",
        after=CLOSE,
        numbered="/:[0-9]{1,3}/",
    ),
)
