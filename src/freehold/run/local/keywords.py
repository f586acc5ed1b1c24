"""The keywords of a loaded model's calls, each stated once: TypedDicts for type checkers, and signatures made of them.

Knows names, types and defaults; knows no model.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast, get_args

from freehold.base.errors import BadPrompt, UsageError
from freehold.base.types import (
    Audio,
    FormatLike,
    Image,
    Message,
    ModelOptions,
    OnPrefill,
    Overflow,
    Part,
    Role,
    SamplingParams,
    Tool,
    ToolCall,
    ToolChoice,
)
from freehold.run.store.progress import ProgressLike

C = TypeVar("C", bound=Callable[..., Any])


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParams as keywords: `chat("Hi", temperature=0, seed=1)`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float]
    seed: int | None


class GenerateOptions(SamplingOptions, total=False):
    """What `LLM.generate` takes besides the prompt; `LLM.chat` says what each means."""

    max_tokens: int | None  # None: until the model ends or the context is full
    sampling: SamplingParams | None  # None: the model's own; keywords of SamplingOptions win over it
    stop: Sequence[str]
    logprobs: int | None  # also the N likeliest tokens of each step
    format: FormatLike  # a JSON schema as a dict, "json" for any JSON object, or a Format
    adapter: str | None  # by its name, "" for none; None leaves it to `adapters.default`
    on_prefill: (
        OnPrefill | None
    )  # called with the prompt's tokens read and all of them, before the first token


class ChatOptions(GenerateOptions, total=False):
    """What `LLM.chat` and `LLM.stream` take besides the messages."""

    think: bool | None  # None leaves reasoning to the template
    think_tokens: int | None  # most tokens of reasoning; then it is closed and the answer begins
    effort: str | None  # one of the template's levels
    tools: Tools
    tool_choice: str  # "auto", "none", "required" or the name of a tool
    parallel_tool_calls: bool
    overflow: Overflow


class LoadOptions(ModelOptions, total=False):
    """What `load` takes besides the model."""

    draft: str | Path | None
    pull: bool
    progress: ProgressLike


# All others are None.
DEFAULTS: dict[str, object] = {
    "stop": (),
    "tools": (),
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "overflow": "error",
    "kv_type": "f16",
    "speculate": True,
    "allow_paging": False,
    "eyes": "lazy",
    "pull": False,
}
SAMPLING = tuple(SamplingOptions.__annotations__)
CALLS = tuple(name for name in ChatOptions.__annotations__ if name not in SAMPLING)
KNOWN = (*CALLS, *SAMPLING)


def keywords(options: type) -> Callable[[C], C]:
    """Give a function with `**options` the keys of a TypedDict as keywords in its signature, for help() and IPython.

    Sampling stays `**options`, as type checkers see all of them.
    """

    def given(function: C) -> C:
        signature = inspect.signature(function)
        plain = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shown = [*plain, *_parameters(options)]
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return given


def _parameters(options: type) -> Iterator[inspect.Parameter]:
    for name, annotated in options.__annotations__.items():
        if name not in SAMPLING:
            annotation = getattr(annotated, "__forward_arg__", annotated)
            default = DEFAULTS.get(name)
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
    if options.__annotations__.keys() >= set(SAMPLING):
        yield inspect.Parameter(
            "options", inspect.Parameter.VAR_KEYWORD, annotation="Unpack[SamplingOptions]"
        )


# --- the forms a chat and its tools may be given in from Python, brought into one -------------------

Chat = str | Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Tool | Mapping[str, Any]]

_FIELDS = frozenset(("role", "content", "thinking", "tool_calls", "tool_call_id", "name"))


def as_messages(prompt: Chat) -> list[Message]:
    """Return a chat's messages from any of the forms it may be given in; a dictionary's content may be a list of parts.

    Raises UsageError for anything else, BadPrompt for a chat that says nothing.
    """
    if isinstance(prompt, str):
        prompt = [Message("user", prompt)]
    chat = [m if isinstance(m, Message) else _as_message(m) for m in prompt]
    chat = [_whole(m) if m.parts else m for m in chat]
    if not any(m.content.strip() or m.parts for m in chat if m.role != "system"):
        raise BadPrompt("the chat is empty", "give at least one message with text")
    return chat


def _whole(message: Message) -> Message:
    """Return a message whose parts are of the right types. Raises UsageError where its content is another text."""
    parts = tuple(map(_as_part, message.parts))
    texts = [part for part in parts if isinstance(part, str)]
    if message.content not in ("".join(texts), "\n".join(texts)):
        raise UsageError(
            f"the content of a message is {message.content[:60]!r}, and its parts have another text",
            "give the parts alone",
        )
    return replace(message, parts=parts)


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
    parts: tuple[Part, ...] = ()
    if isinstance(content, list | tuple):
        parts = tuple(map(_as_part, content))
        content = "".join(part for part in parts if isinstance(part, str))
    texts = [content, *(raw.get(key, "") for key in ("thinking", "tool_call_id", "name"))]
    if raw.keys() - _FIELDS or role is None or not all(isinstance(text, str) for text in texts):
        shown = {k: v for k, v in raw.items() if k != "content"}
        raise UsageError(
            f"not a message: {shown!r}",
            "it has role (system, user, assistant or tool) and content, and may have thinking, tool_calls, "
            "tool_call_id and name",
        )
    content, thinking, id, name = texts
    seen = parts if not all(isinstance(part, str) for part in parts) else ()
    return Message(role, content, thinking, tuple(map(_as_call, calls)), id, name, seen)


def _as_part(raw: object) -> Part:
    """Return a part of a message: text, a picture, a sound, or OpenAI's dictionary of one."""
    if isinstance(raw, str | Image | Audio):
        return raw
    if isinstance(raw, Mapping) and raw.get("type") == "text" and isinstance(raw.get("text"), str):
        return raw["text"]
    if isinstance(raw, Mapping) and raw.get("type") == "image_url":
        address = raw.get("image_url")
        address = address if isinstance(address, Mapping) else {"url": address}
        url, detail = address.get("url"), address.get("detail")
        if isinstance(url, str):
            return Image.at(url, str(detail or ""))
    if isinstance(raw, Mapping) and raw.get("type") == "input_audio":
        sound = raw.get("input_audio")
        if isinstance(sound, Mapping) and isinstance(sound.get("data"), str):
            return Audio.in_base64(sound["data"], str(sound.get("format") or ""))
    raise UsageError(
        f"a part of a message is a {type(raw).__name__}",
        "give text, freehold.Image or freehold.Audio, or OpenAI's dictionary of type text, image_url or input_audio",
    )


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
