"""Reads Anthropic's answers: events of a stream and whole messages become the same chunks.

The stream ends with message_stop: the chunk with finish_reason waits for it. Counts of the prompt leave out what was
found in the cache or written to it; Usage has the sum. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from freehold.base.types import Chunk, FinishReason, SignedThinking, ToolPiece, Usage
from freehold.route.providers.contract import Cause, EventReader, Piece, UpstreamFault
from freehold.route.providers.faults import check_counts, decoded, invalid, plain

_NOTHING: tuple[Piece, ...] = ()

# pause_turn ends the turns of Anthropic's own tools, which are never asked for: such an answer is not whole.
_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
    "pause_turn": "length",
    "model_context_window_exceeded": "length",
}
CAUSES: dict[str, Cause] = {
    "invalid_request_error": "request",
    "authentication_error": "auth",
    "billing_error": "auth",
    "permission_error": "auth",
    "not_found_error": "request",
    "request_too_large": "context",
    "rate_limit_error": "rate",
    "overloaded_error": "rate",
    "timeout_error": "timeout",
    "api_error": "server",
}


# What the API sends. Unknown fields are skipped; the names of events are their types there.


class CacheSplit(msgspec.Struct, gc=False):
    """Tokens written to the cache, by how long they stay."""

    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class OutputDetails(msgspec.Struct, gc=False):
    """Which tokens of the output were thought."""

    thinking_tokens: int = 0


class ClaudeUsage(msgspec.Struct, gc=False):
    """Counts so far; a later event leaves out what does not change."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheSplit | None = None
    output_tokens_details: OutputDetails | None = None


class _ContentBlock(msgspec.Struct, gc=False):
    type: str
    id: str = ""
    name: str = ""
    text: str | None = ""
    thinking: str | None = ""
    signature: str | None = ""
    data: str = ""
    input: msgspec.Raw = msgspec.Raw(b"")


class _BlockDelta(msgspec.Struct, gc=False):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""


class _StopDetails(msgspec.Struct, gc=False):
    explanation: str | None = None


class _MessageBody(msgspec.Struct):
    id: str
    type: str = "message"
    content: list[_ContentBlock] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None
    usage: ClaudeUsage = msgspec.field(default_factory=ClaudeUsage)


class _MessageStart(msgspec.Struct):
    message: _MessageBody


class _BlockStart(msgspec.Struct, gc=False):
    index: int
    content_block: _ContentBlock


class _BlockGain(msgspec.Struct, gc=False):
    index: int
    delta: _BlockDelta


class _BlockStop(msgspec.Struct, gc=False):
    index: int


class _EndDelta(msgspec.Struct, gc=False):
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None


class _MessageEnd(msgspec.Struct):
    delta: _EndDelta
    usage: ClaudeUsage = msgspec.field(default_factory=ClaudeUsage)


class _ClaudeError(msgspec.Struct):
    type: str = ""
    message: str = ""


class _ClaudeErrorBody(msgspec.Struct):
    """The error event, and the body of an answer that is not 200."""

    error: _ClaudeError


class _Typed(msgspec.Struct):
    type: str


_TYPED = msgspec.json.Decoder(_Typed)
_START = msgspec.json.Decoder(_MessageStart)
_BLOCK = msgspec.json.Decoder(_BlockStart)
_GAIN = msgspec.json.Decoder(_BlockGain)
_STOP = msgspec.json.Decoder(_BlockStop)
_END = msgspec.json.Decoder(_MessageEnd)
ERROR = msgspec.json.Decoder(_ClaudeErrorBody)
BODY = msgspec.json.Decoder(_MessageBody)


class MessageReader(EventReader):
    """Reads one answer; `answer_id` is the provider's."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, _ContentBlock] = {}
        self._gained: list[str] = []  # thinking of the open block
        self._signature: list[str] = []
        self._has_arguments = False  # of the open call
        self._calls = 0
        self._chars = 0
        self._usage = ClaudeUsage()
        self._end: _EndDelta | None = None

    def _counts(self) -> Usage | None:
        return usage_of(self._usage)

    def push(self, event: str, data: bytes) -> Sequence[Piece]:
        """Return what an event adds; events of unknown names add nothing, as the API's versioning asks."""
        name = event or decoded(_TYPED, data, "an event without a type").type
        if name == "content_block_delta":  # nearly every event
            return self._gain(decoded(_GAIN, data, "an event that cannot be read"))
        if name == "message_start":
            message = decoded(_START, data, "a message_start that cannot be read").message
            self.answer_id = message.id
            self._count(message.usage)
        elif name == "content_block_start":
            begun = decoded(_BLOCK, data, "a block that cannot be read")
            return self._begin(begun.index, begun.content_block)
        elif name == "content_block_stop":
            return self._close(decoded(_STOP, data, "a block's end that cannot be read").index)
        elif name == "message_delta":
            end = decoded(_END, data, "a message_delta that cannot be read")
            if end.delta.stop_reason is not None or self._end is None:
                self._end = end.delta
            self._count(end.usage)
        elif name == "message_stop":
            return self._finish()
        elif name == "error":
            error = decoded(ERROR, data, "an error that cannot be read").error
            raise UpstreamFault(cause_of(error, "server"), f"{error.type}: {plain(error.message)}")
        return _NOTHING

    def whole(self, message: _MessageBody) -> Sequence[Piece]:
        """Return the chunks of an answer that did not stream."""
        self.answer_id = message.id
        self._count(message.usage)
        pieces: list[Piece] = []
        for index, block in enumerate(message.content):
            pieces += self._begin(index, block)
            pieces += self._close(index)
        self._end = _EndDelta(message.stop_reason, message.stop_sequence, message.stop_details)
        return (*pieces, *self._finish())

    def _begin(self, index: int, block: _ContentBlock) -> Sequence[Piece]:
        self._open[index] = block
        self._gained, self._signature, self._has_arguments = [], [block.signature or ""], False
        if block.type == "text" and block.text:
            return self._text_pieces(block.text)
        if block.type == "thinking" and block.thinking:
            self._gained.append(block.thinking)
            return ((0, Chunk(thinking=block.thinking)),)
        if block.type == "tool_use":
            self._calls += 1
            return ((0, Chunk(tool_calls=(ToolPiece(self._calls - 1, block.id, block.name),))),)
        return _NOTHING

    def _text_pieces(self, text: str) -> Sequence[Piece]:
        self._chars += len(text)
        return ((0, Chunk(text)),)

    def _gain(self, gain: _BlockGain) -> Sequence[Piece]:
        delta, block = gain.delta, self._open.get(gain.index)
        if block is None:
            raise invalid("a piece of a block that had not begun")
        if delta.type == "text_delta":
            return self._text_pieces(delta.text) if delta.text else _NOTHING
        if delta.type == "thinking_delta":
            self._gained.append(delta.thinking)
            return ((0, Chunk(thinking=delta.thinking)),) if delta.thinking else _NOTHING
        if delta.type == "signature_delta":
            self._signature.append(delta.signature)
        elif delta.type == "input_json_delta" and delta.partial_json and block.type == "tool_use":
            self._has_arguments = True
            return ((0, Chunk(tool_calls=(ToolPiece(self._calls - 1, arguments=delta.partial_json),))),)
        return _NOTHING

    def _close(self, index: int) -> Sequence[Piece]:
        block = self._open.pop(index, None)
        if block is None:
            raise invalid("the end of a block that had not begun")
        if block.type == "tool_use" and not self._has_arguments:
            arguments = bytes(block.input).decode() or "{}"
            return ((0, Chunk(tool_calls=(ToolPiece(self._calls - 1, arguments=arguments),))),)
        if block.type == "redacted_thinking":
            return self._sign(SignedThinking(redacted=block.data))
        if block.type == "thinking" and (signature := "".join(self._signature)):
            return self._sign(SignedThinking("".join(self._gained), signature))
        return _NOTHING

    def _sign(self, block: SignedThinking) -> Sequence[Piece]:
        placed = SignedThinking(block.text, block.signature, block.redacted, self._chars, self._calls)
        return ((0, Chunk(signed=(placed,))),)

    def _count(self, usage: ClaudeUsage) -> None:
        for name in ClaudeUsage.__struct_fields__:
            value: Any = getattr(usage, name)
            if value is not None:
                setattr(self._usage, name, value)

    def _finish(self) -> Sequence[Piece]:
        end = self._end
        if end is None or end.stop_reason is None:
            raise invalid("a message without a stop_reason")
        reason = _REASONS.get(end.stop_reason)
        if reason is None:
            raise invalid(f"the stop_reason {plain(end.stop_reason)!r}, which is not known here")
        self.ended = True
        details = end.stop_details if reason == "refusal" else None
        declined = details.explanation or "" if details is not None else ""
        stop = end.stop_sequence or "" if end.stop_reason == "stop_sequence" else ""
        return ((0, Chunk(finish_reason=reason, usage=self._counts(), stop=stop, refusal=declined)),)


def usage_of(counts: ClaudeUsage) -> Usage | None:
    """Return the counts with cached and written tokens inside the prompt's; None where there are none."""
    if counts.input_tokens is None or counts.output_tokens is None:
        return None
    cached, created = counts.cache_read_input_tokens or 0, counts.cache_creation_input_tokens or 0
    hour = counts.cache_creation.ephemeral_1h_input_tokens if counts.cache_creation is not None else 0
    hour = min(hour, created)
    thought = counts.output_tokens_details.thinking_tokens if counts.output_tokens_details else 0
    check_counts(counts.input_tokens, counts.output_tokens, cached, created, hour, thought)
    return Usage(
        prompt_tokens=counts.input_tokens + cached + created,
        completion_tokens=counts.output_tokens,
        cached_tokens=cached,
        written_tokens=created - hour,
        written_hour_tokens=hour,
        thought_tokens=min(thought, counts.output_tokens),
    )


def cause_of(error: _ClaudeError, otherwise: Cause) -> Cause:
    """Return why an attempt failed. An overlong prompt and an empty account are both named in words only."""
    message = error.message.lower()
    if error.type == "invalid_request_error":
        if any(
            words in message for words in ("prompt is too long", "exceed context limit", "context window")
        ):
            return "context"
        if "credit balance" in message:
            return "auth"
    return CAUSES.get(error.type, otherwise)
