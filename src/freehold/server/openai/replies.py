"""What OpenAI's whole answers look like, for the OpenAPI document.

Knows fields and types; handlers build plain objects and do not know this file.
Path: app.py's routes -> openapi.document
"""

from __future__ import annotations

from typing import Any, Literal

from freehold.server.core.reply import WireReply


class UsageReply(WireReply):
    """Tokens that were read and made."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class FunctionReply(WireReply):
    """A tool's name, and its arguments as the text of a JSON object."""

    name: str
    arguments: str


class ToolUseReply(WireReply):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionReply


class AssistantReply(WireReply):
    """What the assistant says; `content` is null where it only calls tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolUseReply] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Scored(WireReply):
    """A token and its log-probability."""

    token: str
    logprob: float | None  # null: nothing precedes it
    bytes: list[int]
    top_logprobs: list[Scored] | None = None
    id: int | None = None


class ChatLogprobs(WireReply):
    """Those of a whole answer."""

    content: list[Scored]
    refusal: None


class ChatChoice(WireReply):
    """One answer of a chat."""

    index: int
    message: AssistantReply
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]
    token_ids: list[int] | None = None


class TextLogprobs(WireReply):
    """Those of a text, with the place of each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    content: list[Scored] | None = None  # with return_token_ids


class TextChoice(WireReply):
    """One continuation of a prompt."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Completion(WireReply):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: UsageReply
    freehold: dict[str, Any]  # the receipt: context, sampling, timings, warnings


class ChatCompletion(_Completion):
    """A whole answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(_Completion):
    """A whole answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class EmbeddingRow(WireReply):
    """One text's vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(WireReply):
    """What /v1/embeddings answers."""

    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: UsageReply
    freehold: dict[str, Any]


class ModelCard(WireReply):
    """One model, in OpenAI's shape; with an anthropic-version header it is Anthropic's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None
    freehold: dict[str, Any]


class ModelList(WireReply):
    """Every model that may be asked, in OpenAI's shape."""

    object: Literal["list"]
    data: list[ModelCard]
