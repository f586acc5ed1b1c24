"""Calls as JSON objects: Hermes and Qwen, lists between marks, Mistral, Llama and Functionary."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from freehold.run.tokenizer.dialects.contract import (
    Call,
    Calls,
    Dialect,
    Offer,
    Opening,
    Reading,
    TextSource,
    call_here,
    call_of,
    calls_of,
    is_name,
    loaded,
)
from freehold.run.tokenizer.dialects.grammar import CallForm

# --- Hermes and Qwen: <tool_call>{object}</tool_call>, one pair of marks for each call --------------
# Small models of the family often leave the marks out, so a JSON object alone, or in a fence, is a call too: as the
# first thing of a line, with the name first, if it is the name of a tool that was given. Anything else stays text.

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


# --- one JSON list between marks: Nemotron Nano 2, Granite 3, Phi-4-mini, Command R7B, others -------


def read_list(close: str, named: str, source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read the list; `named` is the key of a tool's name."""
    yield from source.space()
    calls = calls_of(loaded((yield from source.json("["))), named)
    if calls and close:
        yield from source.optional(close)
    return calls


def _dialect(
    name: str, open: str, close: str, *, keys: tuple[str, str] = ("name", "arguments"), indent: str = ""
) -> Dialect:
    """Return the dialect of a family; `indent` precedes each call, on a line of its own."""
    form = CallForm(
        f'{{"{keys[0]}": "',
        f'", "{keys[1]}": ',
        "}",
        before=f"{open}[{indent}",
        between=f",{indent}" if indent else ", ",
        after=("\n]" if indent else "]") + close,
    )
    marks = (close,) if close else ()
    return Dialect(name, (Opening(open),), partial(read_list, close, keys[0]), marks=marks, form=form)


NEMOTRON = _dialect("nemotron", "<TOOLCALL>", "</TOOLCALL>")
TOOL_CALLS = _dialect("tool-calls", "<tool_calls>", "</tool_calls>")
GRANITE = _dialect("granite", "<|tool_call|>", "")
PHI4 = replace(_dialect("phi4", "<|tool_call|>", "<|/tool_call|>"), in_system=True)
COHERE = _dialect(
    "cohere", "<|START_ACTION|>", "<|END_ACTION|>", keys=("tool_name", "parameters"), indent="\n    "
)


# --- Mistral: [TOOL_CALLS] and a JSON list (v3) -----------------------------------------------------
# Or [TOOL_CALLS]name[ARGS]{...} for each call (v11 and later).

MISTRAL_OPEN, ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[\w.\-]*")
_ID = re.compile(r"\w*")


def read_mistral(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read a list of calls, or one call by its name."""
    yield from source.space()
    if (yield from source.char()) == "[":
        return calls_of(loaded((yield from source.json("["))))
    name = yield from source.word(_NAME)
    if (yield from source.literal(ID)):
        yield from source.word(_ID)
    yield from source.literal(ARGS)
    yield from source.space()
    call = yield from call_here(source, name)
    return [call] if call is not None and name else None


MISTRAL = Dialect(
    "mistral",
    (Opening(MISTRAL_OPEN),),
    read_mistral,
    marks=(ID, ARGS),
    short_ids=True,
    form=CallForm(MISTRAL_OPEN, ARGS, "", between=""),
)
MISTRAL_V3 = replace(
    MISTRAL,
    name="mistral-v3",
    form=CallForm(
        OBJECT.head, OBJECT.middle, OBJECT.tail, before=f"{MISTRAL_OPEN}[", between=", ", after="]"
    ),
)


# --- Llama 3: a JSON object with "name" and "parameters" --------------------------------------------
# Sometimes after <|python_tag|>, several joined by ";". Llama 4 has two marks of its own around code, and joins calls
# without any. Functionary, built on Llama 3, writes <function=NAME>{...}</function> instead.

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


LLAMA_FORM = CallForm(OBJECT.head, '", "parameters": ', OBJECT.tail)
LLAMA = Dialect("llama", (Opening(TAG), *BARE), _Marks((TAG,), (";", TAG)).read, form=LLAMA_FORM)
LLAMA4 = Dialect(
    "llama4",
    (Opening(START), Opening(END), *BARE),
    _Marks((START, END), (), END).read,
    form=replace(LLAMA_FORM, between=""),
)

FUNCTION, FUNCTION_END = "<function=", "</function>"


def read_function(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read one call of Functionary's."""
    name, mark = yield from source.until(">", "\n", "<")
    if mark != ">" or not is_name(name):
        return None
    call = yield from call_here(source, name)
    if call is None:
        return None
    yield from source.optional(FUNCTION_END)
    return [call]


FUNCTIONARY = Dialect(
    "functionary",
    (Opening(FUNCTION),),
    read_function,
    marks=(FUNCTION_END,),
    form=CallForm(FUNCTION, ">", FUNCTION_END, between=""),
)
