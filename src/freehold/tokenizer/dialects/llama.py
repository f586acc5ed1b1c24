"""Llama 3: a JSON object with "name" and "parameters", sometimes after <|python_tag|>, several joined by ";".

Llama 4 has two marks of its own around code, and joins calls without any. Functionary, built on Llama 3, writes
<function=NAME>{...}</function> instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
START, END = "<|python_start|>", "<|python_end|>"


@dataclass(frozen=True, slots=True)
class _Marks:
    """The marks around calls and between them."""

    opens: tuple[str, ...]
    between: tuple[str, ...]  # of which a mark counts after a mark alone; none: the next object follows
    closes: str = ""  # may be missing; Llama 4's templates write both around nothing

    def read(self, source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
        """Read calls: after a mark, or an object as the first thing of a line."""
        if opening in self.opens:
            yield from self._close(source)
            yield from source.space()
            call = yield from named_call(source, offer)
            calls = None if call is None else [call]
        else:
            calls = yield from read_bare(source, opening, offer)
        while calls:
            end = source.at
            yield from source.space()
            more = yield from self._joined(source, opening)
            call = (yield from named_call(source, offer)) if more else None
            if call is None:
                source.at = end
                break
            calls.append(call)
        if calls:
            yield from self._close(source)
        return calls

    def _joined(self, source: TextSource, opening: str) -> Reading[bool]:
        marks = [mark for mark in self.between if mark not in self.opens or opening in self.opens]
        if not marks:
            return (yield from source.char()) == "{"
        matched = yield from source.literal(*marks)
        yield from source.space()
        return bool(matched)

    def _close(self, source: TextSource) -> Reading[None]:
        if self.closes:
            yield from source.optional(self.closes)


FORM = CallForm(OBJECT.head, '", "parameters": ', OBJECT.tail)
LLAMA = Dialect("llama", (Opening(TAG), *BARE), _Marks((TAG,), (";", TAG)).read, form=FORM)
LLAMA4 = Dialect(
    "llama4",
    (Opening(START), Opening(END), *BARE),
    _Marks((START, END), (), END).read,
    form=replace(FORM, between=""),
)

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
