"""The fields of POST /v1/responses: types, ranges, and what becomes of each.

Sampling and the like are those of the other generating requests; a field is honoured, refused by name, or named in
`warnings`. Knows the wire's fields and Job's; knows no route and no store.
Path: HttpCall.struct -> ResponseRequest -> response_job -> Job; echo -> ResponseShape
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.server.core.fields import Count, priority
from freehold.server.core.formats import schema_format
from freehold.server.core.limits import typed
from freehold.server.core.pictures import Pictures
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.generating import Generating, sampling, stops, tenant_of
from freehold.server.openai.fields.offers import Offered, read_tools
from freehold.server.openai.fields.structured import format_of
from freehold.server.openai.responses.items import read_items
from freehold.serving import MAX_LOGPROBS, MAX_MESSAGES, MAX_TOOLS, Job
from freehold.types import Format, Overflow, Tool

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
IN_THE_OPEN = f"include {ENCRYPTED} was ignored: reasoning comes in the open"
Key = Annotated[str, Meta(min_length=1, max_length=64)]
Value = Annotated[str, Meta(max_length=512)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ReasoningOptions(Struct, kw_only=True):
    """How much to think, and under which name to show it."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseTextOptions(Struct, kw_only=True):
    """What the text must be."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class SchemaFormat(Struct, kw_only=True):
    """A format with a schema."""

    schema: dict[str, Any]


class ResponseRequest(Generating, kw_only=True):
    """POST /v1/responses: items to answer. Fields of the other generating requests hold here too, but for `n`."""

    input: Annotated[
        str | Annotated[list[Any], Meta(max_length=MAX_MESSAGES)],
        Meta(
            description="Text, or items: message, reasoning, function_call, function_call_output, custom_tool_call, "
            "custom_tool_call_output, mcp_approval_response, item_reference."
        ),
    ]
    instructions: Annotated[
        str | None, Meta(description="The first system turn; earlier responses' are not carried on.")
    ] = None
    previous_response_id: Annotated[
        Annotated[str, Meta(max_length=128)] | None,
        Meta(description="A stored response whose chat this request continues."),
    ] = None
    store: Annotated[
        bool | None, Meta(description="Keep the response for later requests, in bounds. Default true.")
    ] = None
    tools: Annotated[
        Annotated[list[Any], Meta(max_length=MAX_TOOLS)] | None,
        Meta(
            description="`function`, `custom`, and `mcp` with the `server_label` of a configured server; those of "
            "other types are left out, with a warning."
        ),
    ] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        Meta(
            description="`auto`, `none`, `required`, a tool by `type` and `name`, or `allowed_tools` of a `mode`."
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="false: one call an answer at most. Default true.")
    ] = None
    max_tool_calls: Annotated[
        Count | None, Meta(description="Limits tools that a provider runs; this server runs none.")
    ] = None
    max_output_tokens: Annotated[
        Count | None, Meta(description="Most tokens of the answer, reasoning included; wins over max_tokens.")
    ] = None
    reasoning: Annotated[
        ReasoningOptions | None,
        Meta(
            description="`effort`: `none` is think false, others are for models that know levels. `summary`: "
            "reasoning comes, uncut, under the name of a summary."
        ),
    ] = None
    think: Annotated[
        bool | None, Meta(description="Reason before the answer, or not, where the model has the switch.")
    ] = None
    text: Annotated[
        ResponseTextOptions | None, Meta(description="`format`: `text`, `json_object` or `json_schema`.")
    ] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(description="Return each token's log-probability, and those of this many alternatives."),
    ] = None
    include: Annotated[
        Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=32)] | None,
        Meta(description=f"`{LOGPROBS}`; others are named in warnings."),
    ] = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None,
        Meta(description="A chat longer than the context: `auto` drops the oldest turns, `disabled` fails."),
    ] = None
    overflow: Annotated[
        Overflow | None, Meta(description="The same in this server's words; wins over truncation.")
    ] = None
    metadata: Annotated[
        Annotated[dict[Key, Value], Meta(max_length=16)] | None,
        Meta(description="Comes back with the response."),
    ] = None
    background: Annotated[
        bool | None, Meta(description="true is refused: /v1/batches runs what need not be waited for.")
    ] = None


# Of OpenAI's fields, those that would change the answer.
_REFUSED = ("conversation", "prompt", "moderation")


def refuse_unsupported(r: ResponseRequest, raw: dict[str, Any]) -> None:
    """Refuse by name what cannot be honoured."""
    for name in _REFUSED:
        if raw.get(name) is not None:
            raise _unsupported(name, f"{name} is not supported by this server")
    if r.background:
        raise _unsupported("background", "background is not supported; use POST /v1/batches")
    if r.n not in (None, 1):
        raise _unsupported("n", f"n is {r.n}; a response has one answer")


def _unsupported(name: str, message: str) -> Refused:
    return Refused(400, message, param=name, code="unsupported_parameter")


def response_job(
    r: ResponseRequest,
    items: Sequence[Any],
    known: int,
    tenant: str,
    warnings: list[str],
    pictures: Pictures,
    served: Sequence[Tool] = (),
) -> tuple[Job, Offered]:
    """Return the job of a request whose whole chat is `items`, `known` of them from earlier responses.

    `served`: tools of its MCP servers.
    """
    offered = read_tools(r.tools or (), r.tool_choice, warnings, served)
    limit = r.max_output_tokens if r.max_output_tokens is not None else r.max_tokens
    if limit == 0:
        raise Refused(400, "max_output_tokens is 0; expected 1 or more", param="max_output_tokens")
    if r.return_token_ids:
        warnings.append("return_token_ids was ignored: responses have no place for them")
    think, effort = _thinking(r)
    job = Job(
        messages=read_items(items, r.instructions, known, warnings, pictures),
        max_tokens=limit,
        sampling=sampling(r),
        stop=stops(r),
        logprobs=_logprobs(r, warnings),
        think=think,
        effort=effort,
        tools=offered.tools,
        tool_choice=offered.choice,
        tool_name=offered.name,
        parallel_tool_calls=r.parallel_tool_calls is not False,
        format=_format(r, warnings),
        overflow=r.overflow or ("drop-oldest" if r.truncation == "auto" else "error"),
        ignore_eos=bool(r.ignore_eos),
        priority=priority(r.priority),
        tenant=tenant_of(r, tenant),
        timeout_s=r.timeout,
        whole=not r.stream,
    )
    return job, offered


def summarized(r: ResponseRequest) -> bool:
    """Return whether reasoning is to go by the name of a summary."""
    return r.reasoning is not None and (r.reasoning.summary or r.reasoning.generate_summary) is not None


def echo(r: ResponseRequest, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a response repeats of its request."""
    reasoning, text = r.reasoning or ReasoningOptions(), r.text or ResponseTextOptions()
    return {
        "instructions": r.instructions,
        "max_output_tokens": r.max_output_tokens,
        "max_tool_calls": r.max_tool_calls,
        "metadata": r.metadata or {},
        "parallel_tool_calls": r.parallel_tool_calls is not False,
        "previous_response_id": r.previous_response_id,
        "prompt_cache_key": r.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort,
            "summary": reasoning.summary or reasoning.generate_summary,
        },
        "safety_identifier": r.safety_identifier,
        "service_tier": "default",
        "store": r.store is not False,
        "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        "tool_choice": raw.get("tool_choice") or "auto",
        "tools": raw.get("tools") or [],
        "top_logprobs": r.top_logprobs or 0,
        "truncation": r.truncation or "disabled",
        "user": r.user,
    }


def _thinking(r: ResponseRequest) -> tuple[bool | None, str | None]:
    effort = r.reasoning.effort if r.reasoning else None
    if effort == "none":
        return (False if r.think is None else r.think), None
    return r.think, effort


def _logprobs(r: ResponseRequest, warnings: list[str]) -> int | None:
    wanted = r.include or []
    for name in dict.fromkeys(wanted):
        if name == ENCRYPTED:
            warnings.append(IN_THE_OPEN)
        elif name != LOGPROBS:
            warnings.append(f"include {name!r} was ignored")
    if r.top_logprobs or LOGPROBS in wanted:
        return r.top_logprobs or 0
    return None


def _format(r: ResponseRequest, warnings: list[str]) -> Format | None:
    """Read `text.format`, or any of the names that the other generating requests have for it."""
    text = r.text or ResponseTextOptions()
    if text.verbosity is not None:
        warnings.append("text.verbosity was ignored: say it in the instructions")
    own, other = _text_format(text.format), format_of(r)
    if own is not None and other is not None:
        raise Refused(
            400, "text.format and another field both say what the text must be", param="text.format"
        )
    return own or other


def _text_format(format: dict[str, Any] | None) -> Format | None:
    kind = "text" if format is None else format.get("type")
    if format is None or kind == "text":
        return None
    if kind == "json_object":
        return Format("json")
    if kind != "json_schema":
        raise Refused(
            400,
            f"text.format.type is {str(kind)[:60]!r}; expected text, json_object or json_schema",
            param="text.format.type",
            code="invalid_value",
        )
    return schema_format(typed(format, SchemaFormat, "text.format").schema, "text.format.schema")
