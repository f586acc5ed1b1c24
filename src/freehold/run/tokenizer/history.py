"""Spells messages and tools as chat templates expect them, and detects what a template can do.

Knows the dictionaries that templates read, as `transformers` passes them; knows no Jinja. What differs between
templates is found by rendering a chat with a call in it (`CallSpelling`), or is the dialect's.

Switches, efforts, calls and their spelling are detected by rendering tiny chats. All probes of a template go to the
renderer at once, so that they cost one message and share one limit. What only a mark in the source tells is not found
by them. Knows probes and what their renders mean; knows no process.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import BadTemplate
from freehold.base.types import Image, Message, Tool, ToolCall
from freehold.run.tokenizer.dialects import Call, Dialect, ToolParser
from freehold.run.tokenizer.dialects.contract import dumped

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
PROBE_TOOL = Tool("probe_tool", "probe", {"type": "object", "properties": {"probe_key": {"type": "string"}}})
PROBE_CALL = ToolCall("probe0000", PROBE_TOOL.name, '{"probe_key": "probe_value"}')
PROBE_CHAT = (Message("user", "x"), Message("assistant", "", tool_calls=(PROBE_CALL,)))
PROBE_SAID = (PROBE_CHAT[0], Message("assistant", "probe_said", tool_calls=(PROBE_CALL,)))
PROBE_AGAIN = ToolCall("probe0001", PROBE_TOOL.name, '{"probe_key": "probe_again"}')
PROBE_PAIR = (Message("user", "x"), Message("assistant", "", tool_calls=(PROBE_CALL, PROBE_AGAIN)))


@dataclass(frozen=True, slots=True)
class CallSpelling:
    """The form of calls that a template expects: arguments as an object or as its text, no content as "" or none."""

    as_text: bool = False
    no_content: bool = False


FORMS = tuple(CallSpelling(as_text, none) for as_text in (False, True) for none in (False, True))


def shows_call(rendered: str | None) -> bool:
    """Tell whether a rendered PROBE_CHAT shows its call, and not as Python spells a dictionary."""
    if rendered is None or PROBE_TOOL.name not in rendered:
        return False
    return "probe_value" in rendered and "'probe_key'" not in rendered and '\\"' not in rendered


def short_id(id: str) -> str:
    """Return nine letters and digits that stand for `id`; an id of that form stands for itself."""
    return id if _SHORT_ID.fullmatch(id) else letters(id.encode(), 9)


def letters(seed: bytes, count: int) -> str:
    """Return `count` letters and digits, at most 40, that depend on `seed` alone."""
    number = int.from_bytes(hashlib.sha256(seed).digest(), "big")
    return "".join(_LETTERS[number // 62**place % 62] for place in range(count))


def tool_dict(tool: Tool | Mapping[str, Any]) -> dict[str, Any]:
    """Spell a tool as OpenAI's wire and `transformers` do."""
    if not isinstance(tool, Tool):
        return dict(tool)
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _content(message: Message) -> str | list[dict[str, Any]]:
    """Spell what a message says: its text, or where it has pictures or sounds, texts and their marks in their order."""
    if all(isinstance(part, str) for part in message.parts):
        return message.content
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image" if isinstance(part, Image) else "audio"}
        for part in message.parts
    ]


@dataclass(frozen=True, slots=True)
class Spelling:
    """Spells a chat for one template."""

    form: CallSpelling = CallSpelling()
    short_ids: bool = False
    as_text: bool = False  # the template knows no calls: they are part of what was said
    single: bool = False  # it renders no more than one call of a message
    apart: bool = False  # it leaves calls out where their message says something
    channels: bool = False  # it takes what was said before a call for thinking, and refuses both

    def chat(self, messages: Sequence[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return `messages` as dictionaries; those that are dictionaries already are only tidied."""
        names: dict[str, str] = {}
        out: list[dict[str, Any]] = []
        for message in self.turns(messages):
            if not isinstance(message, Message):
                out.append(self._tidied(message))
                continue
            names |= {call.id: call.name for call in message.tool_calls}
            out.append(self._message(message, names))
        return out

    def turns(self, messages: Sequence[Message | Mapping[str, Any]]) -> Iterable[Message | Mapping[str, Any]]:
        """Return the turns that the template can render."""
        if self.as_text:
            return _told(messages)
        turns = _one_by_one(messages) if self.single else messages
        return _apart(turns) if self.apart else turns

    def _message(self, message: Message, names: Mapping[str, str]) -> dict[str, Any]:
        if self.channels and message.tool_calls and message.thinking and message.content:
            thought = f"{message.thinking}\n\n{message.content}"
            message = replace(message, content="", thinking=thought)
        plain: dict[str, Any] = {"role": message.role, "content": _content(message)}
        if message.thinking:
            plain |= {"reasoning_content": message.thinking, "thinking": message.thinking}
        if message.tool_calls:
            plain["tool_calls"] = [self._call(call) for call in message.tool_calls]
            if self.form.no_content and not message.content:
                plain["content"] = None
        if message.tool_call_id:
            plain["tool_call_id"] = self._id(message.tool_call_id)
        name = message.name or names.get(message.tool_call_id, "")
        return {**plain, "name": name} if name else plain

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = call.arguments if self.form.as_text else json.loads(call.arguments)
        function = {"name": call.name, "arguments": arguments}
        return {"type": "function", "id": self._id(call.id), "function": function}

    def _id(self, id: str) -> str:
        return short_id(id) if self.short_ids else id

    def _tidied(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out what is none, but for the content that calls stand in for; past thinking goes under both names."""
        plain = {key: value for key, value in message.items() if value is not None}
        if self.form.no_content and message.get("tool_calls") and message.get("content", "") is None:
            plain["content"] = None
        for name in ("reasoning_content", "thinking", "reasoning"):
            if name in plain:
                return {"thinking": plain[name], **plain, "reasoning_content": plain[name]}
        return plain


def _one_by_one(
    messages: Sequence[Message | Mapping[str, Any]],
) -> Iterator[Message | Mapping[str, Any]]:
    """Turn a message of several calls into one for each, with the results of each behind it."""
    waiting = list(messages)
    while waiting:
        message = waiting.pop(0)
        if not isinstance(message, Message) or len(message.tool_calls) < 2:
            yield message
            continue
        results: list[Message] = []
        while waiting and isinstance(waiting[0], Message) and waiting[0].role == "tool":
            results.append(waiting.pop(0))  # type: ignore[arg-type]
        turn = message
        for call in message.tool_calls:
            yield replace(turn, tool_calls=(call,))
            turn = Message("assistant", "")
            yield from (result for result in results if result.tool_call_id == call.id)
        known = {call.id for call in message.tool_calls}
        yield from (result for result in results if result.tool_call_id not in known)


def _apart(turns: Iterable[Message | Mapping[str, Any]]) -> Iterator[Message | Mapping[str, Any]]:
    """Put what was said before calls into a message of its own."""
    for message in turns:
        if isinstance(message, Message) and message.tool_calls and message.content:
            yield replace(message, tool_calls=())
            message = Message("assistant", "", tool_calls=message.tool_calls)
        yield message


def _told(messages: Sequence[Message | Mapping[str, Any]]) -> Iterator[Message | Mapping[str, Any]]:
    """Turn calls into text of the assistant's, and the results that follow into one turn of the user's."""
    results: list[Message] = []
    for message in messages:
        if isinstance(message, Message) and message.role == "tool":
            results.append(message)
            continue
        if results:
            yield _results_told(results)
            results = []
        if isinstance(message, Message) and message.tool_calls:
            calls = ({"name": c.name, "parameters": json.loads(c.arguments)} for c in message.tool_calls)
            lines = [message.content, *map(dumped, calls)]
            message = Message("assistant", "\n".join(filter(None, lines)), message.thinking)
        yield message
    if results:
        yield _results_told(results)


def _results_told(results: Sequence[Message]) -> Message:
    """Return results of tools as one turn of the user's, their pictures where they were."""
    pieces: list[str | Image] = []
    for i, result in enumerate(results):
        shown = [part for part in result.parts if isinstance(part, Image)]
        parts = result.parts if shown else (result.content,)
        pieces += ["\n```tool_output\n" if i else "```tool_output\n", *parts, "\n```"]
    joined = _joined(pieces)
    return Message("user", "".join(map(str, joined))) if len(joined) == 1 else Message("user", parts=joined)


def _joined(pieces: Sequence[str | Image]) -> tuple[str | Image, ...]:
    """Join texts that follow one another: a template may trim each part of a message."""
    out: list[str | Image] = []
    for piece in pieces:
        if out and isinstance(piece, str) and isinstance(before := out[-1], str):
            out[-1] = before + piece
        else:
            out.append(piece)
    return tuple(out)


def with_preamble(chat: list[dict[str, Any]], preamble: str) -> list[dict[str, Any]]:
    """Return `chat` with `preamble` after what its system message says."""
    if not preamble:
        return chat
    if chat and chat[0].get("role") == "system":
        system = f"{chat[0].get('content') or ''}\n\n{preamble}"
        return [{**chat[0], "content": system}, *chat[1:]]
    return [{"role": "system", "content": preamble}, *chat]


def with_tools(chat: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `chat` with the text of `tools` in its system message, an empty one if it has none."""
    listed = dumped([tool.get("function", tool) for tool in tools])
    system = chat[0] if chat and chat[0].get("role") == "system" else {"role": "system", "content": ""}
    return [{**system, "tools": listed}, *chat[chat[:1] == [system] :]]


# --- what a template can do ------------------------------------------------------------------------

EFFORT = "reasoning_effort"
EFFORTS = ("low", "medium", "high")
OTHER_EFFORTS = ("minimal", "xhigh", "max")  # probed where the source names them: it may write any word
MOST_PROBED = 1_000_000  # characters that one probe may become


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
