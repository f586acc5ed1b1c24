"""The fields of Anthropic's requests: types, ranges, and which of them there are.

Knows the wire; chat.py reads the messages and job.py the rest. docs/reference/http.md is made from these structs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.base.serving import MAX_MESSAGES, MAX_STOP_CHARS, MAX_STOPS, MAX_TOOLS
from freehold.base.types import MAX_SEED, Overflow, Priority
from freehold.serve.http.core.fields import FORCED, Name, Share, doc

MAX_BLOCKS = 4096  # of one message

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Kind = Annotated[str, Meta(min_length=1, max_length=64)]
ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
Tokens = Annotated[int, Meta(ge=1, le=FORCED)]
Object = dict[str, Any]


class CacheControl(Struct, kw_only=True):
    """Up to where a provider that sells its cache keeps the prompt, and for how long."""

    type: Kind = "ephemeral"
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Struct, kw_only=True):
    """A text block, of a system prompt or within another block."""

    type: Kind
    text: str | None = None
    cache_control: CacheControl | None = None


class DocumentSource(Struct, kw_only=True):
    """Where a document's text or a picture's bytes are."""

    type: Kind
    data: str | None = None
    media_type: str | None = None
    url: str | None = None
    content: str | Annotated[list[TextBlock], Meta(max_length=MAX_BLOCKS)] | None = None


class ResultPart(Struct, kw_only=True):
    """A block within a tool's result: text, what holds text, or the name of a tool that was found."""

    type: Kind
    text: str | None = None
    tool_name: Name | None = None
    title: str | None = None
    context: str | None = None
    source: str | DocumentSource | None = None
    content: Annotated[list[TextBlock], Meta(max_length=MAX_BLOCKS)] | None = None
    cache_control: CacheControl | None = None


class Block(Struct, kw_only=True):
    """A block of a message; its `type` says which of the fields it has."""

    type: Kind
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: Id | None = None
    name: Name | None = None
    input: Object | None = None
    tool_use_id: Id | None = None
    content: str | Annotated[list[ResultPart], Meta(max_length=MAX_BLOCKS)] | None = None
    is_error: bool | None = None
    title: str | None = None
    context: str | None = None
    source: str | DocumentSource | None = None
    cache_control: CacheControl | None = None


class InputMessage(Struct, kw_only=True):
    """One turn, or a part of one."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=MAX_BLOCKS)] | None = None
    clear_at: Literal["next_user_message", "never"] | None = None  # of a system message


class ToolParam(Struct, kw_only=True):
    """A tool. With a `type` other than custom, one that Anthropic describes or runs."""

    name: ToolName | None = None
    type: Kind | None = None
    description: str | None = None
    input_schema: Object | None = None
    defer_loading: bool | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Struct, kw_only=True):
    """Whether tools may, must or must not be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, kw_only=True):
    """Whether to think first, and for how many tokens at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Struct, kw_only=True):
    """What the answer's text must be."""

    type: Literal["json_schema"]
    schema: Object


class OutputConfig(Struct, kw_only=True):
    """How much to think, and what the text must be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountRequest(Struct, kw_only=True):
    """POST /v1/messages/count_tokens: a chat to count. The other fields of /v1/messages have no effect here."""

    model: Annotated[Name, doc("The model's name; it is loaded if it is not in memory.")]
    messages: Annotated[
        Annotated[list[InputMessage], Meta(min_length=1, max_length=MAX_MESSAGES)],
        Meta(
            description="The chat, which starts with a user turn. If it ends with an assistant turn, the answer "
            "continues it. Blocks: text, thinking, tool_use, tool_result, image (base64 or url, for "
            "vision models), document (text), search_result. Consecutive turns of one role are joined."
        ),
    ]
    system: Annotated[
        str | Annotated[list[TextBlock], Meta(max_length=MAX_BLOCKS)] | None,
        doc("The system prompt. A line `x-anthropic-billing-header:` at its start is removed."),
    ] = None
    tools: Annotated[
        Annotated[list[ToolParam], Meta(max_length=MAX_TOOLS)] | None,
        Meta(
            description="Tools that the model may call; deferred tools once a result refers to them. Tools that "
            "Anthropic runs are ignored, with a warning."
        ),
    ] = None
    tool_choice: Annotated[ToolChoice | None, doc("auto (default), any, none, or tool with its name.")] = None
    thinking: Annotated[
        Thinking | None,
        Meta(
            description="enabled with budget_tokens, disabled, or adaptive (the default): the model decides."
        ),
    ] = None
    output_config: Annotated[
        OutputConfig | None,
        doc("`effort` (levels above high count as high), and `format`: a JSON schema for the text."),
    ] = None
    output_format: Annotated[OutputFormat | None, doc("The older name of output_config.format.")] = None
    cache_control: Annotated[
        CacheControl | None,
        Meta(
            description="Here, in blocks and in tools: which part of the prompt a provider caches. Local models "
            "cache all prompts; usage shows how much was cached."
        ),
    ] = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages: a chat to answer."""

    max_tokens: Annotated[Tokens, doc("Maximum tokens of the answer, including thinking.")]
    stream: Annotated[bool | None, doc("Send the answer as server-sent events.")] = None
    stop_sequences: Annotated[
        Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]], Meta(max_length=MAX_STOPS)
        ]
        | None,
        doc("Texts that end the answer; `stop_sequence` is the one that occurred."),
    ] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, doc("0 is greedy. Default: the model's own.")
    ] = None
    top_p: Annotated[Share | None, doc("Sample from the most probable tokens whose sum reaches this.")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=0, le=FORCED)] | None,
        doc("Sample from this many tokens; 0: all."),
    ] = None
    metadata: Annotated[Object | None, doc("Accepted, but not used.")] = None
    service_tier: Annotated[Literal["auto", "standard_only"] | None, doc("Accepted: there is one tier.")] = (
        None
    )
    min_p: Annotated[
        Share | None, doc("Freehold's own: drop tokens below this times the highest probability.")
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_SEED)] | None,
        doc("Freehold's own: the same seed gives the same answer. Default: random."),
    ] = None
    overflow: Annotated[
        Overflow | None,
        Meta(
            description="Freehold's own: if a chat is longer than the context, `error` (default) or `drop-oldest`, "
            "which the receipt reports."
        ),
    ] = None
    priority: Annotated[Priority | None, doc("Freehold's own: `batch` uses only idle capacity.")] = None
    timeout: Annotated[
        Annotated[float, Meta(gt=0, le=86400)] | None,
        doc("Freehold's own: time limit for the whole answer, in seconds."),
    ] = None
    keep_alive: Annotated[
        float | str | None,
        Meta(
            description="Freehold's own: how long the model stays in memory afterwards: seconds or `10m`; "
            "negative: no limit."
        ),
    ] = None
