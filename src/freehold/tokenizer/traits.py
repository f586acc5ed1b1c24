"""Detects what a chat template can do by rendering tiny chats: switches, efforts, calls and their spelling.

Knows probes and what their renders mean; knows no Jinja and no process. All probes of a template go to the renderer
at once, so that they cost one message and share one limit. What only a mark in the source tells is not found here.
Path: ChatTemplate.traits -> probes -> Run -> Traits
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.errors import BadTemplate
from freehold.tokenizer.dialects import Call, Dialect, ToolParser
from freehold.tokenizer.history import (
    FORMS,
    PROBE_CALL,
    PROBE_CHAT,
    PROBE_TOOL,
    CallSpelling,
    Spelling,
    shows_call,
    tool_dict,
)

EFFORT = "reasoning_effort"
EFFORTS = ("low", "medium", "high")
SWITCHES = ("enable_thinking", "thinking")
MAX_TEXT = 1_000_000  # characters that one probe may become

PLAIN: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "tools": None,
    "add_generation_prompt": True,
}

Variables = Mapping[str, Any]
Run = Callable[[Sequence[Variables]], Sequence[str | BadTemplate]]


@dataclass(frozen=True, slots=True)
class Traits:
    """What was found; as it stands here, a template whose probes failed."""

    plain: str = ""  # a chat of one word, with a generation prompt
    switch: str | None = None  # the variable that turns thinking on and off
    efforts: tuple[str, ...] = ()  # the levels that change what is rendered
    shows_tools: bool = False
    takes_system: bool = False
    form: CallSpelling = FORMS[0]  # the form of calls it expects
    reads: bool = True  # a call that it renders is one that its dialect reads
    dead: BadTemplate | None = None  # it does not compile, or not even a chat of one word ends


def traits_of(source: str, dialect: Dialect | None, run: Run) -> Traits:
    """Render probes by `run` and say what they show. Raises BadTemplate if the template ends the renderer."""
    probes = _probes(source, dialect)
    texts = dict(zip(probes, map(_text, run(list(probes.values()))), strict=True))
    form = next((form for form in FORMS if shows_call(texts.get(f"call {form}"))), None)
    tools = texts["tools"]
    return Traits(
        plain=texts["plain"] or "",
        switch=next((name for name in SWITCHES if _turns(texts, name)), None),
        efforts=_efforts(texts),
        shows_tools=tools is not None and PROBE_TOOL.name in tools,
        takes_system=texts["system"] is not None,
        form=form or FORMS[0],
        reads=form is None or dialect is None or _reads(dialect, texts[f"call {form}"] or ""),
    )


def _probes(source: str, dialect: Dialect | None) -> dict[str, Variables]:
    chat = PLAIN["messages"]
    found: dict[str, Variables] = {
        "plain": {},
        "tools": {"tools": [tool_dict(PROBE_TOOL)]},
        "system": {"messages": [{"role": "system", "content": "x"}, *chat]},
    }
    for name in (name for name in SWITCHES if name in source):
        found |= {f"{name} {on}": {name: on} for on in (True, False)}
    if EFFORT in source:
        found |= {f"{EFFORT} {level}": {EFFORT: level} for level in EFFORTS}
    if dialect is not None:
        for form in FORMS:
            spelling = Spelling(form, dialect.short_ids, dialect.as_text)
            found[f"call {form}"] = {"messages": spelling.chat(PROBE_CHAT)}
    return {name: {**PLAIN, **variables} for name, variables in found.items()}


def _text(result: str | BadTemplate) -> str | None:
    """Return what was rendered; None where the template refuses."""
    return None if isinstance(result, BadTemplate) else result


def _reads(dialect: Dialect, text: str) -> bool:
    """Tell whether `dialect` finds the probe's call in what was rendered. Harmony's header is not the answer's own."""
    if dialect.channels:
        return True
    parser = ToolParser(dialect, (PROBE_TOOL,))
    found = [each for each in parser.push(text) + parser.finish() if isinstance(each, Call)]
    return [(call.name, json.loads(call.arguments)) for call in found] == [
        (PROBE_CALL.name, json.loads(PROBE_CALL.arguments))
    ]


def _turns(texts: Mapping[str, str | None], name: str) -> bool:
    on, off = texts.get(f"{name} True"), texts.get(f"{name} False")
    return on is not None and on != off


def _efforts(texts: Mapping[str, str | None]) -> tuple[str, ...]:
    rendered = {level: texts.get(f"{EFFORT} {level}") for level in EFFORTS}
    known = {level: text for level, text in rendered.items() if text is not None}
    return tuple(known) if len(set(known.values())) > 1 else ()
