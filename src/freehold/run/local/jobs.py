"""What a call and a job may have: the keywords of a loaded model's calls, and the limits of a job.

Each keyword is stated once: TypedDicts for type checkers, and signatures made of them. A job may be of an untrusted
caller, so every field has a limit, checked before anything is computed. Knows names, types, defaults and numbers; knows
no model: ranges of sampling, ids and the context are checked where they are used.
"""

from __future__ import annotations

import inspect
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast, get_args

from freehold.base.config import check_names
from freehold.base.errors import BadPrompt, ContextOverflow, UsageError
from freehold.base.serving import (
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_SCORES,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TEMPLATE_CHARS,
    MAX_TOOLS,
    Job,
)
from freehold.base.types import (
    MAX_FORMAT_CHARS,
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
    as_format,
)
from freehold.run.store.progress import ProgressLike
from freehold.run.tokenizer.dialects.contract import is_name, loaded
from freehold.run.tokenizer.dialects.grammar import types_of

# --- keywords of calls -----------------------------------------------------------------------------

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
            "give only the parts",
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


# --- limits of jobs --------------------------------------------------------------------------------

MAX_ANSWERS = 128
MAX_TENANT_CHARS = 256
MAX_CLIENT_CHARS = MAX_TENANT_CHARS + 16  # a key's name or an address, and which of both it is
MAX_EFFORT_CHARS = 32
MAX_TIMEOUT_S = 7 * 24 * 3600.0
# No text up to this for each token of the context is refused by its length; ordinary text has four characters to a
# token. A longer one is, before it is tokenized, where even the vocabulary's longest token would leave it too long.
CHARS_PER_TOKEN = 64


def check_job(job: Job, context: int, longest: Callable[[], int], *, counted: bool = False) -> None:
    """Raise UsageError naming the first field beyond its limit, ContextOverflow for a text that cannot fit.

    `longest`: see most_chars. `counted`: the prompt is counted only, and may have more tokens than there is room for.
    """
    _check("n", job.n, 1, MAX_ANSWERS)
    _check("max_tokens", job.max_tokens, 1 if job.prompt_logprobs is None else 0)
    _check("logprobs", job.logprobs, 0, MAX_LOGPROBS)
    _check("prompt_logprobs", job.prompt_logprobs, 0, MAX_LOGPROBS)
    _check("number of stop strings", len(job.stop), 0, MAX_STOPS)
    _check("length of a stop string", max(map(len, job.stop), default=1), 1, MAX_STOP_CHARS)
    _check("length of tenant", len(job.tenant), 0, MAX_TENANT_CHARS)
    _check("length of client", len(job.client), 0, MAX_CLIENT_CHARS)
    _check("number of messages", len(job.messages or ()), 0, MAX_MESSAGES)
    _check("number of answers resumed", len(job.resume), 0, job.n)
    check_request(job)
    _check("length of template", len(job.template), 0, MAX_TEMPLATE_CHARS)
    _check("length of effort", len(job.effort or ""), 0, MAX_EFFORT_CHARS)
    bias = job.sampling.get("logit_bias", {})
    if not isinstance(bias, Mapping):
        raise UsageError(f"logit_bias is a {type(bias).__name__}; expected ids with numbers")
    _check("number of logit_bias entries", len(bias), 0, MAX_BIASES)
    _check_timeout(job.timeout_s)
    _check_size(job, context, longest, counted=counted)


def check_request(job: Job) -> None:
    """Check the fields that Python callers may get wrong too: tools, format and think_tokens. Raises UsageError."""
    _check("think_tokens", job.think_tokens, 0)
    _check_tools(job)
    _check_format(job)


def _check_tools(job: Job) -> None:
    """Check the tools, the choice among them, and the calls in the chat's history."""
    _check("number of tools", len(job.tools), 0, MAX_TOOLS)
    names = [tool.name for tool in job.tools]
    for tool in job.tools:
        if not is_name(tool.name):
            raise UsageError(
                f"a tool is called {tool.name[:60]!r}; expected a name without blanks and brackets"
            )
        if names.count(tool.name) > 1:
            raise UsageError(f"two tools are called {tool.name!r}")
        _check(f"length of {tool.name}'s parameters", _tool_size(tool), 0, MAX_FORMAT_CHARS)
        kinds = types_of(tool.parameters)
        if kinds and "object" not in kinds:  # a call that obeys it would be parsed as text
            raise UsageError(
                f"the parameters of tool {tool.name!r} are of type {', '.join(sorted(kinds))}; expected object"
            )
    if job.tool_choice not in ("auto", "none", "required"):
        raise UsageError(f"tool_choice is {job.tool_choice!r}; expected auto, none or required")
    if job.tool_choice == "required" and not job.tools:
        raise UsageError("tool_choice is 'required', and there are no tools", "give tools")
    if job.tool_name and (job.tool_choice != "required" or job.tool_name not in names):
        raise UsageError(f"tool_choice names {job.tool_name[:60]!r}, which is not one of the tools")
    for i, message in enumerate(job.messages or ()):
        _check(f"number of tool calls of message {i}", len(message.tool_calls), 0, MAX_TOOLS)
        for call in message.tool_calls:
            if not isinstance(loaded(call.arguments), dict):
                raise UsageError(f"the arguments of {call.name[:60]!r} in message {i} are no JSON object")


def _tool_size(tool: Tool) -> int:
    return _json_size(tool.parameters, f"the parameters of tool {tool.name!r} are not valid JSON")


def _json_size(value: object, otherwise: str) -> int:
    try:
        return len(
            json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        )  # as short as requests have it
    except (TypeError, ValueError, RecursionError) as e:
        raise UsageError(f"{otherwise}: {e}") from None


def _check(name: str, value: int | None, low: int, high: int | None = None) -> None:
    if value is None or (low <= value and (high is None or value <= high)):
        return
    expected = f"{low} or more" if high is None else f"{low} to {high:,}"
    raise UsageError(f"{name} is {value:,}; expected {expected}")


def _check_format(job: Job) -> None:
    if job.format is None:
        return
    source = job.format.source
    size = len(source) if isinstance(source, str) else _json_size(source, "format is not a JSON schema")
    _check("length of format", size, 0, MAX_FORMAT_CHARS)
    if job.ignore_eos:
        raise UsageError("ignore_eos continues after the end of a text, and format has one", "leave one out")


def _check_timeout(seconds: float | None) -> None:
    if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= MAX_TIMEOUT_S):
        raise UsageError(f"timeout_s is {seconds}; expected more than 0, to {MAX_TIMEOUT_S:.0f}")


def most_chars(chars: int, context: int, longest: Callable[[], int]) -> int:
    """Return how many characters `context` tokens hold at most. `longest`: those of the longest token, which takes
    30 ms to find and is looked for only where `chars` make it necessary."""
    plenty = CHARS_PER_TOKEN * context
    return plenty if chars <= plenty else max(plenty, longest() * context)


def check_chars(what: str, chars: int, context: int, longest: Callable[[], int]) -> None:
    """Raise ContextOverflow for a text of this many characters that `context` tokens cannot hold it."""
    most = most_chars(chars, context, longest)
    if chars > most:
        raise ContextOverflow(
            f"{what} has {chars:,} characters; the context of {context:,} tokens holds {most:,} at most",
            "shorten it, or split it",
        )


def _check_size(job: Job, context: int, longest: Callable[[], int], *, counted: bool) -> None:
    chars = sum(len(m.content) + len(m.thinking) for m in job.messages or ())
    chars += sum(len(c.name) + len(c.arguments) for m in job.messages or () for c in m.tool_calls)
    chars += sum(len(t.name) + len(t.description) + _tool_size(t) for t in job.tools)
    chars += len(job.suffix or "") + sum(len(name) + len(text) for name, text in job.beside)
    chars += len(job.prompt) if isinstance(job.prompt, str) else 0
    check_chars("the prompt", chars, context, longest)
    tokens = len(job.prompt) if isinstance(job.prompt, tuple) else min(chars, context)
    if tokens > context and not counted:
        raise ContextOverflow(
            f"the prompt has {tokens:,} tokens; the context holds {context:,}", "shorten it"
        )
    scores = 0 if job.prompt_logprobs is None else tokens * (1 + job.prompt_logprobs)
    if scores > MAX_SCORES:
        raise UsageError(
            f"log-probabilities of {tokens:,} prompt tokens with {job.prompt_logprobs} alternatives each are "
            f"{scores:,} numbers; the limit is {MAX_SCORES:,}",
            "ask for fewer alternatives",
        )


# --- jobs from the keywords of a call in Python -----------------------------------------------------

SEED_BITS = 63


def chat_job(messages: Chat, options: ChatOptions, adapter: str) -> Job:
    """Return the job of a chat. Raises UsageError."""
    tools = as_tools(options.get("tools", ()))
    choice, only = as_choice(options.get("tool_choice", "auto"), tools)
    job = Job(
        messages=tuple(as_messages(messages)),
        think=options.get("think"),
        think_tokens=options.get("think_tokens"),
        effort=options.get("effort"),
        tools=tools,
        tool_choice=choice,
        tool_name=only,
        parallel_tool_calls=options.get("parallel_tool_calls", True),
        overflow=options.get("overflow", "error"),
        **_common(options, adapter),
    )
    check_request(job)
    return job


def text_job(prompt: str | tuple[int, ...], options: GenerateOptions, adapter: str) -> Job:
    """Return the job that continues a text or token ids."""
    return Job(prompt=prompt, **_common(options, adapter))


def _common(options: GenerateOptions, adapter: str) -> dict[str, Any]:
    """Return the fields of a Job that chats and texts share."""
    return {
        "max_tokens": options.get("max_tokens"),
        "stop": tuple(options.get("stop", ())),
        "logprobs": options.get("logprobs"),
        "format": as_format(options.get("format")),
        "adapter": adapter,
    }


def sampling_of(options: GenerateOptions, defaults: SamplingParams) -> SamplingParams:
    """Return a call's sampling: its keywords over its `sampling`, or over the model's defaults."""
    named = {name: value for name, value in options.items() if name not in CALLS}
    return seeded(named, options.get("sampling") or defaults)


def seeded(named: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    """Return `defaults` with the fields `named` in their place, and a drawn seed where neither has one."""
    check_names(named, KNOWN)
    params = replace(defaults, **named)
    return params if params.seed is not None else replace(params, seed=secrets.randbits(SEED_BITS))
