"""Llama 3: a JSON object with "name" and "parameters", sometimes after <|python_tag|>, several joined by ";".

Llama 4 has two marks of its own around code, and joins calls without any. Functionary, built on Llama 3, writes
<function=NAME>{...}</function> instead.
"""

from __future__ import annotations

from dataclasses import replace

from freehold.tokenizer.dialects.contract import (
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    arguments_text,
    is_name,
)
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.hermes import BARE, OBJECT, named_call, read_bare
from freehold.tokenizer.dialects.source import Reading, TextSource, loaded

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

START, END = "<|python_start|>", "<|python_end|>"


def read_joined(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read the calls of Llama 4: after a mark, or an object as the first thing of a line."""
    if opening in (START, END):
        yield from source.optional(END)  # templates write both around nothing
        yield from source.space()
        call = yield from named_call(source, offer)
        calls = None if call is None else [call]
    else:
        calls = yield from read_bare(source, opening, offer)
    while calls:
        end = source.at
        yield from source.space()
        call = (yield from named_call(source, offer)) if (yield from source.char()) == "{" else None
        if call is None:
            source.at = end
            break
        calls.append(call)
    if calls:
        yield from source.optional(END)
    return calls


LLAMA4 = Dialect("llama4", (Opening(START), Opening(END), *BARE), read_joined, form=replace(FORM, between=""))

FUNCTION, FUNCTION_END = "<function=", "</function>"


def read_function(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read one call of Functionary's."""
    name, mark = yield from source.until(">", "\n", "<")
    if mark != ">" or not is_name(name):
        return None
    raw = yield from source.json("{")
    arguments = loaded(raw)
    if arguments is None:
        return None
    yield from source.optional(FUNCTION_END)
    return [Call(name, arguments_text(arguments, raw))]


FUNCTIONARY = Dialect(
    "functionary",
    (Opening(FUNCTION),),
    read_function,
    marks=(FUNCTION_END,),
    form=CallForm(FUNCTION, ">", FUNCTION_END, between=""),
)
