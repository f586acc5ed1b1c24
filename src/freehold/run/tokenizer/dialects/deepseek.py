"""DeepSeek V3, R1 and V3.1: calls between full-width bars.

V3 and R1 write a kind, a name and a fenced object for each call, V3.1 a name and an object. The templates that the
models ship render calls and results but not the tools, so those go into the system text.
"""

from __future__ import annotations

from collections.abc import Sequence

from freehold.base.types import Tool
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
    listed,
)
from freehold.run.tokenizer.dialects.grammar import CallForm

OPEN, CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE, _FENCE_END = "```json", "```"


def read(source: TextSource, opening: str, offer: Offer) -> Reading[Calls]:
    """Read all calls of an answer."""
    calls: list[Call] = []
    while True:
        yield from source.space()
        if not (yield from source.literal(CALL)):
            break
        call = yield from _call(source)
        if call is None:
            return None
        calls.append(call)
    if calls:
        yield from source.optional(CLOSE)
    return calls


def _call(source: TextSource) -> Reading[Call | None]:
    name, mark = yield from source.until(SEP, CALL_END, "\n")
    if mark != SEP:
        return None
    fenced = (yield from source.char()) not in "{"
    if fenced:
        name, _ = yield from source.until("\n")
        yield from source.space()
        if not (yield from source.literal(_FENCE)):
            return None
        yield from source.space()
    call = yield from call_here(source, name.strip())
    if call is None or not is_name(call.name):
        return None
    if fenced:
        yield from source.optional(_FENCE_END)
    yield from source.optional(CALL_END)
    return call


def _preamble(kind: str, fence: str, fence_end: str):
    def text(tools: Sequence[Tool]) -> str:
        form = f"{CALL}{kind}NAME{fence}ARGUMENTS{fence_end}{CALL_END}"
        return (
            f"## Tools\nYou can call these functions:\n\n{listed(tools)}\n\n"
            f"To call functions, end your reply with exactly this, ARGUMENTS being a JSON object that fits the "
            f"function's parameters:\n{OPEN}{form}{CLOSE}\nRepeat the inner part for each further call."
        )

    return text


DEEPSEEK_V3 = Dialect(
    "deepseek-v3",
    (Opening(OPEN),),
    read,
    marks=(CLOSE, CALL, SEP, CALL_END),
    preamble=_preamble(f"function{SEP}", "\n```json\n", "\n```"),
    form=CallForm(f"{CALL}function{SEP}", "\n```json\n", f"\n```{CALL_END}", OPEN, "\n", CLOSE),
)
DEEPSEEK_V31 = Dialect(
    "deepseek-v3.1",
    (Opening(OPEN),),
    read,
    marks=(CLOSE, CALL, SEP, CALL_END),
    preamble=_preamble("", SEP, ""),
    form=CallForm(CALL, SEP, CALL_END, OPEN, "", CLOSE),
)
