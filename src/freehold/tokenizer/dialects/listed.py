"""Calls as one JSON list between marks: Nemotron Nano 2, Granite 3, Phi-4-mini, Command R7B, Hunyuan-A13B, Apriel."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from freehold.tokenizer.dialects.contract import Calls, Dialect, Offer, Opening, calls_of
from freehold.tokenizer.dialects.grammar import CallForm
from freehold.tokenizer.dialects.source import Reading, TextSource, loaded


def read(close: str, named: str, source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
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
    return Dialect(name, (Opening(open),), partial(read, close, keys[0]), marks=marks, form=form)


NEMOTRON = _dialect("nemotron", "<TOOLCALL>", "</TOOLCALL>")
TOOL_CALLS = _dialect("tool-calls", "<tool_calls>", "</tool_calls>")
GRANITE = _dialect("granite", "<|tool_call|>", "")
PHI4 = replace(_dialect("phi4", "<|tool_call|>", "<|/tool_call|>"), in_system=True)
COHERE = _dialect(
    "cohere", "<|START_ACTION|>", "<|END_ACTION|>", keys=("tool_name", "parameters"), indent="\n    "
)
