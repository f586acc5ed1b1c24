"""The forms a chat and its tools may be given in from Python, brought into one.

Knows OpenAI's shapes of messages and tools beside our own; knows no template and no model.
Path: LLM.chat -> as_messages, as_tools -> Job
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from freehold.errors import BadPrompt, UsageError
from freehold.types import Message, Role, Tool, ToolCall, ToolChoice

Chat = str | Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Tool | Mapping[str, Any]]

_FIELDS = frozenset(("role", "content", "thinking", "tool_calls", "tool_call_id", "name"))


def as_messages(prompt: Chat) -> list[Message]:
    """Return a chat's messages from any of the forms it may be given in."""
    if isinstance(prompt, str):
        prompt = [Message("user", prompt)]
    chat = [m if isinstance(m, Message) else _as_message(m) for m in prompt]
    if not any(m.content.strip() for m in chat if m.role != "system"):
        raise BadPrompt("the chat is empty", "give at least one message with text")
    return chat


def as_tools(tools: Tools) -> tuple[Tool, ...]:
    """Return tools given as Tool, or as OpenAI's dictionaries."""
    return tuple(t if isinstance(t, Tool) else _as_tool(t) for t in tools)


def as_choice(choice: str, tools: Sequence[Tool]) -> tuple[ToolChoice, str]:
    """Return (tool_choice, tool_name) of "auto", "none", "required" or a tool's name."""
    if choice == "auto" or choice == "none" or choice == "required":
        return choice, ""
    if choice in (tool.name for tool in tools):
        return "required", choice
    raise UsageError(f"tool_choice is {choice!r}", "use 'auto', 'none', 'required' or the name of a tool")


def _as_message(raw: Mapping[str, Any]) -> Message:
    if not isinstance(raw, Mapping):
        raise UsageError(
            f"a message is a {type(raw).__name__}", "give Message, or {'role': ..., 'content': ...}"
        )
    role, calls = _role(raw.get("role")), raw.get("tool_calls") or ()
    content = "" if calls and raw.get("content") is None else raw.get("content")
    texts = [content, *(raw.get(key, "") for key in ("thinking", "tool_call_id", "name"))]
    if raw.keys() - _FIELDS or role is None or not all(isinstance(text, str) for text in texts):
        shown = {k: v for k, v in raw.items() if k != "content"}
        raise UsageError(
            f"not a message: {shown!r}",
            "it has role (system, user, assistant or tool) and content, and may have thinking, tool_calls, "
            "tool_call_id and name",
        )
    content, thinking, id, name = texts
    return Message(role, content, thinking, tuple(map(_as_call, calls)), id, name)


def _role(name: object) -> Role | None:
    return cast(Role, name) if name in get_args(Role) else None


def _as_call(raw: ToolCall | Mapping[str, Any]) -> ToolCall:
    if isinstance(raw, ToolCall):
        return raw
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(f"not a tool call: {raw!r}"[:200], "give ToolCall, or OpenAI's dictionary")
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(raw.get("id", "")), function["name"], text)


def _as_tool(raw: Mapping[str, Any]) -> Tool:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(
            f"not a tool: {raw!r}"[:200], "give Tool, or {'type': 'function', 'function': {'name': ...}}"
        )
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise UsageError(f"the parameters of tool {function['name']} are no JSON schema")
    return Tool(function["name"], str(function.get("description") or ""), parameters)
