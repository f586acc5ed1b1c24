"""Llama 3: a JSON object with "name" and "parameters", sometimes after <|python_tag|>, several joined by ";"."""

from __future__ import annotations

from freehold.tokenizer.dialects.contract import Calls, Dialect, Offer, Opening
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.hermes import BARE, OBJECT, named_call, read_bare
from freehold.tokenizer.dialects.source import Reading, TextSource

TAG = "<|python_tag|>"


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read calls: after the tag, or an object as the first thing of a line."""
    if opening == TAG:
        yield from source.space()
        call = yield from named_call(source, offer)
        calls = None if call is None else [call]
    else:
        calls = yield from read_bare(source, opening, offer)
    while calls:
        end = source.at
        yield from source.space()
        more = (yield from source.literal(";")) or (opening == TAG and (yield from source.literal(TAG)))
        yield from source.space()
        call = (yield from named_call(source, offer)) if more else None
        if call is None:
            source.at = end
            break
        calls.append(call)
    return calls


FORM = CallForm(OBJECT.head, '", "parameters": ', OBJECT.tail)
LLAMA = Dialect("llama", (Opening(TAG), *BARE), read, form=FORM)
