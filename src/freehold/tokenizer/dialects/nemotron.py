"""Nemotron: <TOOLCALL>[{"name": ..., "arguments": {...}}, ...]</TOOLCALL>, all calls of an answer in one list."""

from __future__ import annotations

from freehold.tokenizer.dialects.contract import Calls, Dialect, Offer, Opening, calls_of
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.hermes import OBJECT
from freehold.tokenizer.dialects.source import Reading, TextSource, loaded

OPEN, CLOSE = "<TOOLCALL>", "</TOOLCALL>"


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read the list."""
    yield from source.space()
    calls = calls_of(loaded((yield from source.json("["))))
    if calls:
        yield from source.optional(CLOSE)
    return calls


FORM = CallForm(OBJECT.head, OBJECT.middle, OBJECT.tail, before=f"{OPEN}[", between=", ", after=f"]{CLOSE}")
NEMOTRON = Dialect("nemotron", (Opening(OPEN),), read, marks=(CLOSE,), form=FORM)
