"""What OpenAI's answers share: ids, the frame of an event, usage, the receipt, how a stream ends; pages of lists.

Knows JSON and server-sent events; a subclass knows its choices.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec

from freehold.base.serving import Begin, ModelHandle
from freehold.base.types import Chunk
from freehold.base.version import __version__
from freehold.serve.http.core.answering import COMMENT, CONTENT_TYPE, Choice
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import WireReply
from freehold.serve.http.core.problems import Problem, Refused, openai_error
from freehold.serve.http.core.receipt import Tally, context

FINGERPRINT = f"freehold-{__version__}"
DONE = b"data: [DONE]\n\n"
encode = msgspec.json.encode


class OpenAIShape(ABC):
    """Implements AnswerShape but for what a choice looks like."""

    object: str  # of a whole answer
    event: str  # of an event
    prefix: str  # of the id
    content_type = CONTENT_TYPE
    keep = None

    def __init__(self, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._common: dict[str, Any] = {}
        self._head = b""

    def bind(self, model: str, answer_id: str, tally: Tally) -> None:
        self._tally = tally
        self._common = {
            "id": f"{self.prefix}-{answer_id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._name_head()

    def _name_head(self) -> None:
        opened = encode({**self._common, "object": self.event})[:-1]
        unknown = b',"usage":null' if self._include_usage else b""  # it comes with the last event
        self._head = b"data: " + opened + unknown + b',"choices":[{"index":'

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        """Name the model that answers and its weights, of several prompts the first one's."""
        if job == 0 and (begin.model or begin.weights):
            self._common["model"] = begin.model or self._common["model"]
            if begin.weights:
                self._common["system_fingerprint"] = f"{FINGERPRINT}-{begin.weights[:12]}"
            self._name_head()

    def opened(self, choice: int, begin: Begin) -> bytes:
        return self.first(choice, begin, b',"freehold":' + encode({"context": context(begin)}))

    @abstractmethod
    def piece(self, choice: int, chunk: Chunk) -> bytes: ...

    def end(self, choice: int, reason: str, last: bool) -> bytes:
        shown = last and not self._include_usage
        return self.last(choice, reason, b',"freehold":' + encode(self._tally.receipt()) if shown else b"")

    def closing(self) -> bytes:
        if not self._include_usage:
            return DONE
        return b"data: " + encode({**self._common, "object": self.event, **self._ending([])}) + b"\n\n" + DONE

    def failed(self, trouble: Problem) -> bytes:
        return b"data: " + openai_error(trouble) + b"\n\n" + DONE

    def beat(self) -> bytes:
        return COMMENT

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        rows = [self.choice(choice) for choice in choices]
        return {**self._common, "object": self.object, **self._ending(rows)}

    def _ending(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"choices": choices, "usage": usage(self._tally), "freehold": self._tally.receipt()}

    # --- what a choice looks like; `tail` goes in after the choices ----------------------------------

    @abstractmethod
    def first(self, choice: int, begin: Begin, tail: bytes) -> bytes:
        """Return the events that come before any chunk of a choice."""
        ...

    @abstractmethod
    def last(self, choice: int, reason: str, tail: bytes) -> bytes:
        """Return the event that ends a choice."""
        ...

    @abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a finished choice of a whole answer."""
        ...


def usage(tally: Tally) -> dict[str, Any]:
    """Return OpenAI's counts, over all jobs and their answers."""
    stored = tally.written_tokens + tally.written_hour_tokens
    written = {"cache_write_tokens": stored} if stored else {}
    return {
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": tally.cached_tokens, **written},
        "completion_tokens_details": {"reasoning_tokens": tally.thought_tokens},
    }


# --- lists: a page of the entries after a named one -------------------------------------------------


def query(call: HttpCall) -> dict[str, str]:
    """Return the query's fields."""
    try:
        return dict(parse_qsl(call.scope["query_string"].decode("latin-1"), max_num_fields=32))
    except ValueError as e:
        raise Refused(400, f"the query is malformed: {e}", code="invalid_value") from None


class PageEntry(Protocol):
    """What a list is made of."""

    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=PageEntry)


def page(
    entries: Sequence[E], params: Mapping[str, str], shown: Callable[[E], object], *, most: int = 100
) -> dict[str, Any]:
    """Return `limit` of the entries after the one named `after`, or before `before`.

    400 for a limit beyond `most`, another order than asc and desc, and for no entry.

    `shown` makes what is sent of an entry, of those alone that are sent.
    """
    limit = params.get("limit", str(min(most, 20)))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= most):
        raise Refused(400, f"limit is {limit[:20]!r}; expected 1 to {most:,}", param="limit")
    if params.get("order", "desc") not in ("asc", "desc"):
        raise Refused(400, f"order is {params['order'][:20]!r}; expected asc or desc", param="order")
    begin = _place(entries, "after", params) + 1 if params.get("after") else 0
    end, more = begin + int(limit), begin + int(limit) < len(entries)
    if params.get("before"):
        end = _place(entries, "before", params)
        more = end - int(limit) > begin
        begin = max(begin, end - int(limit))
    part = entries[begin:end]
    return {
        "object": "list",
        "data": [shown(entry) for entry in part],
        "first_id": part[0].id if part else None,
        "last_id": part[-1].id if part else None,
        "has_more": more,
    }


def _place(entries: Sequence[PageEntry], name: str, params: Mapping[str, str]) -> int:
    """Return where the entry is that a parameter names; an empty page would end a client's walk as if it saw all."""
    id = params[name]
    for i, entry in enumerate(entries):
        if entry.id == id:
            return i
    raise Refused(400, f"{name} is {id[:80]!r}, which is not an entry of this list", param=name)


# --- whole answers, for the OpenAPI document: handlers build plain objects and do not know these ----


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
