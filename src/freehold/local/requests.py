"""Jobs from the keywords of a call in Python.

Knows messages, tools, formats and sampling as callers give them; knows no template and no engine.
Path: LLM.chat -> chat_job, sampling_of -> LLM._prepared -> LocalJob
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freehold.config import check_names
from freehold.local.chat import Chat, as_choice, as_messages, as_tools
from freehold.local.jobs import check_request
from freehold.local.keywords import CALLS, KNOWN, ChatOptions, GenerateOptions
from freehold.serving import Job
from freehold.types import SamplingParams, as_format

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
