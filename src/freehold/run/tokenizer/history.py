"""Spells messages and tools as chat templates expect them.

Knows the dictionaries that templates read, as `transformers` passes them; knows no Jinja. What differs between
templates is found by rendering a chat with a call in it (`CallSpelling`), or is the dialect's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from freehold.base.types import Image, Message, Tool, ToolCall
from freehold.run.tokenizer.dialects.source import dumped

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
    """Spell what a message says: its text, or where it has pictures, texts and marks of pictures in their order."""
    if not any(isinstance(part, Image) for part in message.parts):
        return message.content
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
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
        for message in self._turns(messages):
            if not isinstance(message, Message):
                out.append(self._tidied(message))
                continue
            names |= {call.id: call.name for call in message.tool_calls}
            out.append(self._message(message, names))
        return out

    def _turns(
        self, messages: Sequence[Message | Mapping[str, Any]]
    ) -> Iterable[Message | Mapping[str, Any]]:
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
    results: list[str] = []
    for message in messages:
        if isinstance(message, Message) and message.role == "tool":
            results.append(f"```tool_output\n{message.content}\n```")
            continue
        if results:
            yield Message("user", "\n".join(results))
            results = []
        if isinstance(message, Message) and message.tool_calls:
            calls = ({"name": c.name, "parameters": json.loads(c.arguments)} for c in message.tool_calls)
            lines = [message.content, *map(dumped, calls)]
            message = Message("assistant", "\n".join(filter(None, lines)), message.thinking)
        yield message
    if results:
        yield Message("user", "\n".join(results))


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
