"""Detects what a chat template can do by rendering tiny chats: switches, efforts, calls and their spelling.

Knows probes and what their renders mean; knows no Jinja and no process. All probes of a template go to the renderer
at once, so that they cost one message and share one limit. What only a mark in the source tells is not found here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from freehold.base.errors import BadTemplate
from freehold.run.tokenizer.dialects import Call, Dialect, ToolParser
from freehold.run.tokenizer.history import (
    FORMS,
    PROBE_CALL,
    PROBE_CHAT,
    PROBE_PAIR,
    PROBE_SAID,
    PROBE_TOOL,
    CallSpelling,
    Spelling,
    shows_call,
    tool_dict,
    with_tools,
)

EFFORT = "reasoning_effort"
EFFORTS = ("low", "medium", "high")
OTHER_EFFORTS = ("minimal", "xhigh", "max")  # probed where the source names them: it may write any word
MAX_TEXT = 1_000_000  # characters that one probe may become


@dataclass(frozen=True, slots=True)
class Switch:
    """What turns thinking on and off: a variable of the template's, or a word in the system text."""

    name: str
    on: Any = True
    off: Any = False
    in_system: bool = False

    def named_in(self, source: str) -> bool:
        """Tell whether a template speaks of it: of both its words, where those are words of the template's own."""
        if self.in_system:
            return self.off in source
        words = [word for word in (self.on, self.off) if isinstance(word, str)]
        return self.name in source and all(_quotes(source, word) for word in words)

    def inputs(self, on: bool) -> dict[str, Any]:
        """Return the variables of a probe."""
        value = self.on if on else self.off
        if self.in_system:
            return {"messages": [{"role": "system", "content": value}, *PLAIN["messages"]]}
        return {self.name: value}


_BOOLEAN = ("enable_thinking", "thinking")
SWITCHES = (
    Switch("enable_thinking"),
    Switch("thinking"),
    Switch("reasoning"),
    Switch("thinking_mode", "enabled", "disabled"),
    Switch("thinking_budget", -1, 0),
    Switch(EFFORT, "high", "none"),
    Switch(EFFORT, "high", "no_think"),
    Switch("system", "/think", "/no_think", in_system=True),
)
PLAIN: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "tools": None,
    "add_generation_prompt": True,
}

Variables = Mapping[str, Any]
Run = Callable[[Sequence[Variables]], Sequence[str | BadTemplate]]


@dataclass(frozen=True, slots=True)
class Traits:
    """A template's traits; the defaults are those of one whose probes failed."""

    plain: str = ""  # a chat of one word, with a generation prompt
    switch: Switch | None = None  # what turns thinking on and off
    efforts: tuple[str, ...] = ()  # the levels that change what is rendered
    shows_tools: bool = False
    takes_system: bool = False
    form: CallSpelling = FORMS[0]  # the form of calls it expects
    single: bool = False  # of two calls in a message it renders one, or refuses them
    apart: bool = False  # it leaves calls out where their message says something
    reads: bool = True  # a call that it renders is one that its dialect reads
    dead: BadTemplate | None = None  # it does not compile, or not even a chat of one word ends


def traits_of(source: str, dialect: Dialect | None, run: Run) -> Traits:
    """Render probes by `run` and say what they show. Raises BadTemplate if the template ends the renderer."""
    probes = _probes(source, dialect)
    results = run(list(probes.values()))  # BadTemplate where the template refuses
    rendered = (None if isinstance(result, BadTemplate) else result for result in results)
    texts = dict(zip(probes, rendered, strict=True))
    form = next((form for form in FORMS if shows_call(texts.get(f"call {form}"))), None)
    tools = texts["tools"]
    return Traits(
        plain=texts["plain"] or "",
        switch=next((switch for switch in SWITCHES if _turns(texts, switch)), None),
        efforts=next(filter(None, (_efforts(texts, source, name) for name in ("", *_BOOLEAN))), ()),
        shows_tools=tools is not None and PROBE_TOOL.name in tools,
        takes_system=texts["system"] is not None,
        form=form or FORMS[0],
        single=form is not None and "probe_again" not in (texts[f"calls {form}"] or ""),
        apart=form is not None and not shows_call(texts[f"said {form}"]),
        reads=form is None or dialect is None or _reads(dialect, texts[f"call {form}"] or ""),
    )


def _probes(source: str, dialect: Dialect | None) -> dict[str, Variables]:
    chat = PLAIN["messages"]
    probes: dict[str, Variables] = {
        "plain": {},
        "tools": {"tools": [tool_dict(PROBE_TOOL)]},
        "system": {"messages": [{"role": "system", "content": "x"}, *chat]},
    }
    if dialect is not None and dialect.in_system:
        probes["tools"] = {"messages": with_tools(chat, [tool_dict(PROBE_TOOL)])}
    for switch in (switch for switch in SWITCHES if switch.named_in(source)):
        probes |= {f"{switch} {on}": switch.inputs(on) for on in (True, False)}
    if EFFORT in source:
        levels = [*EFFORTS, *(e for e in OTHER_EFFORTS if _quotes(source, e))]
        # Some have levels of thinking alone.
        for name in ("", *(name for name in _BOOLEAN if name in source)):
            probes |= {f"{EFFORT} {name} {e}": {EFFORT: e, **({name: True} if name else {})} for e in levels}
    if dialect is not None:
        for form in FORMS:
            spelling = Spelling(form, dialect.short_ids, dialect.as_text)
            probes[f"call {form}"] = {"messages": spelling.chat(PROBE_CHAT)}
            probes[f"said {form}"] = {"messages": spelling.chat(PROBE_SAID)}
            probes[f"calls {form}"] = {"messages": spelling.chat(PROBE_PAIR)}
    return {name: {**PLAIN, **variables} for name, variables in probes.items()}


def _reads(dialect: Dialect, text: str) -> bool:
    """Tell whether `dialect` finds the probe's call in what was rendered. Harmony's header is not the answer's own."""
    if dialect.channels:
        return True
    parser = ToolParser(dialect, (PROBE_TOOL,))
    calls = [each for each in parser.push(text) + parser.finish() if isinstance(each, Call)]
    return [(call.name, json.loads(call.arguments)) for call in calls] == [
        (PROBE_CALL.name, json.loads(PROBE_CALL.arguments))
    ]


def _turns(texts: Mapping[str, str | None], switch: Switch) -> bool:
    on, off = texts.get(f"{switch} True"), texts.get(f"{switch} False")
    if on is None or off is None:
        return False
    if switch.in_system:
        on, off = on.replace(switch.on, ""), off.replace(switch.off, "")
    return on != off


def _efforts(texts: Mapping[str, str | None], source: str, name: str) -> tuple[str, ...]:
    """Return the levels that change what is rendered while the variable `name` is true, and others the source names."""
    unset = texts.get(f"{Switch(name)} True") if name else texts["plain"]
    rendered = {level: texts.get(f"{EFFORT} {name} {level}") for level in (*EFFORTS, *OTHER_EFFORTS)}
    if len({text for text in rendered.values() if text is not None}) < 2:
        return ()
    order = ("minimal", *EFFORTS, "xhigh", "max")
    return tuple(
        level
        for level in order
        if rendered[level] is not None and (rendered[level] != unset or _quotes(source, level))
    )


def _quotes(source: str, word: str) -> bool:
    return f"'{word}'" in source or f'"{word}"' in source
