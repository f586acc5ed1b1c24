"""Mistral: [TOOL_CALLS] and a JSON list (v3), or [TOOL_CALLS]name[ARGS]{...} for each call (v11 and later)."""

from __future__ import annotations

import re
from dataclasses import replace

from freehold.tokenizer.dialects.contract import (
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    arguments_text,
    calls_of,
)
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.hermes import OBJECT
from freehold.tokenizer.dialects.source import Reading, TextSource, loaded

OPEN, ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[\w.\-]*")
_ID = re.compile(r"\w*")


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read a list of calls, or one call by its name."""
    yield from source.space()
    if (yield from source.char()) == "[":
        return calls_of(loaded((yield from source.json("["))))
    name = yield from source.word(_NAME)
    if (yield from source.literal(ID)):
        yield from source.word(_ID)
    yield from source.literal(ARGS)
    yield from source.space()
    raw = yield from source.json("{")
    arguments = loaded(raw)
    if not name or arguments is None:
        return None
    return [Call(name, arguments_text(arguments, raw))]


MISTRAL = Dialect(
    "mistral",
    (Opening(OPEN),),
    read,
    marks=(ID, ARGS),
    short_ids=True,
    form=CallForm(OPEN, ARGS, "", between=""),
)
MISTRAL_V3 = replace(
    MISTRAL,
    name="mistral-v3",
    form=CallForm(OBJECT.head, OBJECT.middle, OBJECT.tail, before=f"{OPEN}[", between=", ", after="]"),
)
