"""Qwen3-Coder, Qwen3.5 and Nemotron 3: <tool_call><function=NAME><parameter=KEY>value</parameter>...</function>.

A value is raw text between line ends, so its type comes from the tool's schema: a string stays what it is, whatever
it looks like. A value may hold the closing mark itself: it ends where a mark follows that can follow.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from freehold.tokenizer.dialects.contract import Call, Calls, Dialect, Offer, Opening, is_name
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.marked import Marks, marked_arguments
from freehold.tokenizer.dialects.schema import typed
from freehold.tokenizer.dialects.source import Reading, TextSource, dumped

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read one call; models leave the outer mark out, so the inner one opens as well."""
    if opening == OPEN:
        yield from source.space()
        if not (yield from source.literal(FUNCTION)):
            return None
    name, _ = yield from source.until(">", "\n", "<")
    name = name.strip().strip('"')
    if not is_name(name):
        return None
    schema = offer[name].parameters if name in offer else {}
    arguments: dict[str, Any] = {}
    while True:
        yield from source.space()
        mark = yield from source.literal(PARAMETER, FUNCTION_END)
        if mark != PARAMETER:
            break
        key, end = yield from source.until(">", "\n", "<")
        value = (yield from _value(source)) if end == ">" else None
        if value is None:
            return None
        key = key.strip().strip('"')
        arguments[key] = typed(value, key, schema)
    if not mark:
        return None
    yield from source.optional(CLOSE)
    return [Call(name, dumped(arguments))]


def _value(source: TextSource) -> Reading[str | None]:
    """Read a value and its closing mark, but for one line end on each side."""
    start = source.at
    while True:
        _, mark = yield from source.until(PARAMETER_END)
        if not mark:
            return None
        end = source.at
        yield from source.space()
        followed = yield from source.literal(PARAMETER, FUNCTION_END)
        source.at = end
        if followed:
            break
    value = source.text[start : end - len(PARAMETER_END)]
    return value.removeprefix("\n").removesuffix("\n")


_MARKS = Marks(
    f"{OPEN}\n{FUNCTION}",
    ">\n",
    PARAMETER,
    ">\n",
    f"\n{PARAMETER_END}\n",
    f"{FUNCTION_END}\n{CLOSE}",
    between="\n",
)
FORM = CallForm(
    _MARKS.call, _MARKS.named, _MARKS.call_end, between="\n", arguments=partial(marked_arguments, _MARKS)
)
XML = Dialect("xml", (Opening(OPEN), Opening(FUNCTION)), read, marks=(CLOSE,), form=FORM)
