"""The fields of POST /v1/chat/completions, and the job that they make.

Knows the wire's fields and Job's; knows no route and no model. docs/reference/http.md is made from these structs.
Path: HttpCall.struct -> ChatRequest -> chat_job -> Job
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from freehold.server.core.fields import Count, priority
from freehold.server.core.pictures import Pictures
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.generating import Generating, sampling, stops, tenant_of
from freehold.server.openai.fields.messages import ChatMessage, TemplateOptions, read_messages, turn_of
from freehold.server.openai.fields.offers import Choice, Offered, Offers, offered
from freehold.server.openai.fields.structured import format_of
from freehold.serving import MAX_LOGPROBS, MAX_MESSAGES, Job
from freehold.types import Overflow

_EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}


class ChatRequest(Generating, kw_only=True):
    """POST /v1/chat/completions: a chat to answer."""

    messages: Annotated[
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)],
        Meta(
            description="The chat: text, or parts of type text and, for models that see, image_url (data: or https:)."
        ),
    ]
    max_completion_tokens: Annotated[
        Count | None,
        Meta(description="OpenAI's newer name of max_tokens; wins. Default: what the context leaves."),
    ] = None
    logprobs: Annotated[bool | None, Meta(description="Give each token's log-probability.")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(description="And those of this many alternatives."),
    ] = None
    think: Annotated[
        bool | None, Meta(description="Reason before the answer, or not, where the model has the switch.")
    ] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        Meta(
            description="`none` is think false; else low, medium or high, where the model's template has levels: "
            "a warning says where it has none."
        ),
    ] = None
    thinking_token_budget: Annotated[
        Count | None,
        Meta(description="Most tokens of reasoning; then it is closed and the answer begins. vLLM's name."),
    ] = None
    chat_template_kwargs: Annotated[
        TemplateOptions | None, Meta(description="vLLM's way to say think: `enable_thinking`.")
    ] = None
    add_generation_prompt: Annotated[
        bool | None,
        Meta(
            description="vLLM's: false leaves out what the template writes to open an answer. Default true, or "
            "false with continue_final_message."
        ),
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Meta(
            description="vLLM's: the answer continues the last message, an assistant's, and gives what comes after "
            "it alone. Default false: a new answer, as OpenAI gives."
        ),
    ] = None
    tools: Annotated[
        Offers | None,
        Meta(description="Functions, or free-form tools, that the model may ask its caller to run."),
    ] = None
    tool_choice: Annotated[
        Choice | None,
        Meta(
            description="`auto` (default), `none`, `required`, the tool that has to be called, or `allowed_tools`."
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="False: an answer ends with its first call. Default true.")
    ] = None
    overflow: Annotated[
        Overflow | None,
        Meta(
            description="A chat longer than the context: `error` (default) or `drop-oldest`, counted in the receipt."
        ),
    ] = None


def chat_job(r: ChatRequest, tenant: str, warnings: list[str], pictures: Pictures) -> tuple[Job, Offered]:
    """Return the job of a chat request, and what it offers."""
    tools = offered(r.tools or (), r.tool_choice, warnings)
    top = None
    if r.logprobs:
        top = r.top_logprobs or 0
    elif r.top_logprobs:
        raise Refused(400, "top_logprobs needs logprobs true", param="top_logprobs")
    limited = "max_tokens" if r.max_completion_tokens is None else "max_completion_tokens"
    limit = getattr(r, limited)
    if limit == 0:
        raise Refused(400, f"{limited} is 0; expected 1 or more", param=limited)
    messages = read_messages(r.messages, pictures)
    job = Job(
        messages=messages,
        n=r.n or 1,
        max_tokens=limit,
        sampling=sampling(r),
        stop=stops(r),
        logprobs=top,
        think=_think(r),
        think_tokens=r.thinking_token_budget,
        effort=_EFFORTS.get(r.reasoning_effort or ""),
        tools=tools.tools,
        tool_choice=tools.choice,
        tool_name=tools.name,
        parallel_tool_calls=r.parallel_tool_calls is not False,
        overflow=r.overflow or "error",
        turn=turn_of(r.add_generation_prompt, r.continue_final_message),
        format=format_of(r),
        ignore_eos=bool(r.ignore_eos),
        priority=priority(r.priority),
        tenant=tenant_of(r, tenant),
        timeout_s=r.timeout,
        whole=not r.stream,
    )
    return job, tools


def _think(r: ChatRequest) -> bool | None:
    if r.think is not None:
        return r.think
    options = r.chat_template_kwargs
    if options is not None and (options.enable_thinking is not None or options.thinking is not None):
        return options.enable_thinking if options.enable_thinking is not None else options.thinking
    return False if r.reasoning_effort == "none" else None
