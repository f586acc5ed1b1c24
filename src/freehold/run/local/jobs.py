"""The limits of a job from an untrusted caller; every field has one, checked before anything is computed.

Knows numbers only; ranges of sampling, ids and the context are checked where they are used.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from freehold.base.config import check_names
from freehold.base.errors import ContextOverflow, UsageError
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
from freehold.base.types import MAX_FORMAT_CHARS, SamplingParams, Tool, as_format
from freehold.run.local.keywords import (
    CALLS,
    KNOWN,
    Chat,
    ChatOptions,
    GenerateOptions,
    as_choice,
    as_messages,
    as_tools,
)
from freehold.run.tokenizer.dialects.contract import is_name
from freehold.run.tokenizer.dialects.grammar import types_of
from freehold.run.tokenizer.dialects.source import loaded

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
        raise UsageError(f"tool_choice names {job.tool_name[:60]!r}, which is none of the tools")
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
