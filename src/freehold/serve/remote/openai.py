"""A ChatModel over OpenAI's wire: our own server, or any API that speaks the same protocol.

Knows the requests and events of chats and completions; knows no connection, no tokens and no template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Self, cast, get_args

import msgspec

from freehold.base.errors import UpstreamFailed, UsageError
from freehold.base.serving import ModelInfo
from freehold.base.types import (
    Audio,
    Chunk,
    FinishReason,
    FormatLike,
    Message,
    OnPrefill,
    Overflow,
    Part,
    SamplingParams,
    TokenLogprob,
    Tool,
    ToolPiece,
    Usage,
    as_format,
)
from freehold.serve.remote import Api

_OPENAI = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "logit_bias")


class HttpModel:
    """A ChatModel served by an `Api`.

    `info` is what our own server says of a model that it holds: it then gets every sampling field, ids are returned
    with the text, and `default_sampling` is known. Without it, `name` may be any model of an OpenAI-compatible
    API, which gets the fields that such APIs know, and others that differ from the neutral values.
    """

    path = None  # no file of it is known here

    def __init__(self, api: Api, name: str, info: ModelInfo | None = None) -> None:
        self._api, self.name, self._info = api, name, info

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an answer in progress is cancelled."""
        self._api.close()

    @property
    def info(self) -> ModelInfo:
        """What the server reports of the model; raises UsageError for an API that is not ours."""
        if self._info is None:
            raise UsageError(f"only the name of {self.name} is known")
        return self._info

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        think: bool | None = None,
        tools: Sequence[Tool] = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        overflow: Overflow = "error",
        format: FormatLike = None,
        on_prefill: OnPrefill | None = None,
    ) -> Iterator[Chunk]:
        """Answer a chat piece by piece; closing the iterator cancels the answer at the server.

        Raises what the server raised, ServerUnreachable, or UpstreamFailed for a stream without an end.
        """
        body = {
            "messages": [_message(m) for m in messages],
            **self._fields(max_tokens, sampling, stop, format),
        }
        if think is not None:
            body["think"] = think
        if tools:
            body |= _tools(tools, tool_choice, parallel_tool_calls)
        if overflow != "error":
            body["overflow"] = overflow
        if logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": logprobs}
        return self._chunks("/v1/chat/completions", body, on_prefill)

    def stream_text(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        format: FormatLike = None,
        on_prefill: OnPrefill | None = None,
    ) -> Iterator[Chunk]:
        """Continue text, or token ids, as they are."""
        text = prompt if isinstance(prompt, str) else list(prompt)
        body = {"prompt": text, **self._fields(max_tokens, sampling, stop, format)}
        if logprobs is not None:
            body["logprobs"] = logprobs
        return self._chunks("/v1/completions", body, on_prefill)

    def label(self, names: Sequence[str]) -> None:
        """Send these labels with every request from now on."""
        self._api.label(names)

    def check_think(self, think: bool | None) -> None:
        """Accept any value: the server checks it with the request."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many prompt tokens a chat has, from our own server."""
        body = {"model": self.name, "messages": [_message(m) for m in messages]}
        return self._api.call("POST", "/tokenize", body, as_=_Counted).count

    def _fields(
        self,
        max_tokens: int | None,
        sampling: SamplingParams | None,
        stop: Sequence[str],
        format: FormatLike,
    ) -> dict[str, Any]:
        """Build the part of a request that chats and texts share."""
        body: dict[str, Any] = {"model": self.name, "stream": True, "stream_options": {"include_usage": True}}
        if self._info is not None:
            body["return_token_ids"] = True
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if stop:
            body["stop"] = list(stop)
        body |= _format(format)
        return body | _sampling(sampling, everything=self._info is not None)

    def _chunks(self, path: str, body: Mapping[str, Any], on_prefill: OnPrefill | None) -> Iterator[Chunk]:
        """Turn events into chunks; the one that ends the answer comes last, with the usage."""
        reason: FinishReason | None = None
        reported = _Reported()
        dropped = False
        for event in self._api.events(path, body, _Event, on_prefill):
            reported.add(event)
            choice = event.choices[0] if event.choices else _Choice()
            if choice.finish_reason is not None:
                reason = self._reason(choice.finish_reason)
            news = 0 if dropped else event.freehold.context.dropped_messages
            dropped = dropped or news > 0
            chunk = choice.chunk(news)
            if chunk != Chunk():
                yield chunk
        if reason is None:
            raise UpstreamFailed(f"the answer of {self.name} ended before it was complete", "try again")
        yield Chunk(finish_reason=reason, usage=reported.usage(), warnings=reported.warnings)

    def _reason(self, reason: str) -> FinishReason:
        if reason not in get_args(FinishReason):
            raise UpstreamFailed(f"{self.name} ended its answer by {reason!r}, which is not a known reason")
        return cast(FinishReason, reason)


def _message(m: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": m.role, "content": m.content}
    if not all(isinstance(part, str) for part in m.parts):
        turn["content"] = [_part(part) for part in m.parts if part]
    if m.thinking:
        turn["reasoning_content"] = m.thinking
    if m.tool_calls:
        calls = ((c.id, {"name": c.name, "arguments": c.arguments}) for c in m.tool_calls)
        turn["tool_calls"] = [{"id": id, "type": "function", "function": f} for id, f in calls]
    named = {"tool_call_id": m.tool_call_id, "name": m.name}
    return turn | {key: value for key, value in named.items() if value}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Audio):
        return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
    detail = {"detail": part.detail} if part.detail else {}
    return {"type": "image_url", "image_url": {"url": part.as_url, **detail}}


def _tools(tools: Sequence[Tool], choice: str, parallel: bool) -> dict[str, Any]:
    """Return the request's fields for tools; `choice` may be the name of one."""
    offers = [{"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in tools]
    body: dict[str, Any] = {"tools": [{"type": "function", "function": f} for f in offers]}
    if choice in ("none", "required"):
        body["tool_choice"] = choice
    elif choice != "auto":
        body["tool_choice"] = {"type": "function", "function": {"name": choice}}
    return body if parallel else body | {"parallel_tool_calls": False}


def _format(format_like: FormatLike) -> dict[str, Any]:
    """Return a format as request fields: OpenAI's for JSON, vLLM's for what OpenAI has no name for."""
    format = as_format(format_like)
    if format is None:
        return {}
    if format.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if format.kind == "json_schema":
        schema = {"name": "answer", "schema": format.source, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if format.kind == "choice":
        return {"structured_outputs": {"choice": format.source}}
    return {"structured_outputs": {"grammar" if format.kind == "lark" else "regex": format.source}}


def _sampling(sampling: SamplingParams | None, *, everything: bool) -> dict[str, Any]:
    """Return the sampling as request fields: all of them, or OpenAI's own and those that change anything."""
    if sampling is None:
        return {}
    neutral = SamplingParams()
    body = {}
    for name in (f.name for f in fields(SamplingParams)):
        value = getattr(sampling, name)
        if everything or name in _OPENAI or value != getattr(neutral, name):
            body[name] = value
    body["logit_bias"] = {str(id): bias for id, bias in sampling.logit_bias.items()}
    return {name: value for name, value in body.items() if value not in (None, {})}


# What a server sends. Unknown fields are skipped; known ones must have their type.


class _Known(msgspec.Struct):
    """A token and its log-probability. `id` only comes from our own server."""

    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    id: int = -1

    def written(self) -> bytes:
        """Return the bytes that the token writes."""
        return self.token.encode() if self.bytes is None else bytes(b & 255 for b in self.bytes)


class _Counted(msgspec.Struct):
    count: int


class _Token(_Known):
    top_logprobs: list[_Known] = []

    def logprob_of(self) -> TokenLogprob:
        top = self.top_logprobs
        pairs = tuple((t.id, t.logprob) for t in top)
        return TokenLogprob(self.id, self.logprob, pairs, self.written(), tuple(t.written() for t in top))


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Called(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)

    def piece(self) -> ToolPiece:
        function = self.function
        return ToolPiece(self.index, self.id or "", function.name or "", function.arguments or "")


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the other name for it; a server may send both
    tool_calls: list[_Called] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None

    def chunk(self, dropped: int) -> Chunk:
        """Return the chunk of an event; the reason of the answer's end follows with the usage."""
        known = (self.logprobs.content if self.logprobs else None) or []
        return Chunk(
            text=self.text or self.delta.content or "",
            thinking=self.delta.reasoning_content or self.delta.reasoning or "",
            token_ids=tuple(self.token_ids or ()),
            logprobs=tuple(t.logprob_of() for t in known),
            dropped_messages=dropped,
            tool_calls=tuple(c.piece() for c in self.delta.tool_calls or ()),
        )


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    prefill_s: float = 0.0
    decode_s: float = 0.0
    opening_s: float = 0.0
    encoding_s: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    resumed_tokens: int = 0


class _Context(msgspec.Struct):
    dropped_messages: int = 0


class _Receipt(msgspec.Struct):
    """What our own server adds to the first and the last event."""

    context: _Context = msgspec.field(default_factory=_Context)
    timings: _Timings | None = None
    warnings: tuple[str, ...] = ()


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Counts | None = None
    freehold: _Receipt = msgspec.field(default_factory=_Receipt)


class _Reported:
    """The usage that the events of one answer report."""

    def __init__(self) -> None:
        self._counts: _Counts | None = None
        self._timings = _Timings()
        self.warnings: tuple[str, ...] = ()

    def add(self, event: _Event) -> None:
        self.warnings = event.freehold.warnings or self.warnings
        self._counts = event.usage or self._counts
        self._timings = event.freehold.timings or self._timings

    def usage(self) -> Usage | None:
        """Return the counts, or None from a server that does not count."""
        if self._counts is None:
            return None
        details = self._counts.prompt_tokens_details or _Details()
        return Usage(
            self._counts.prompt_tokens,
            self._counts.completion_tokens,
            details.cached_tokens or 0,
            **msgspec.structs.asdict(self._timings),
        )
