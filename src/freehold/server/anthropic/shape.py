"""Anthropic's message, whole and as events with names.

Knows JSON and server-sent events; blocks.py knows what is in an answer. A message has a field `freehold`
besides Anthropic's: clients ignore fields that they do not know.
Path: Answering -> MessageShape -> bytes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from freehold.server.anthropic.blocks import Blocks, Event, folded
from freehold.server.anthropic.errors import anthropic_error
from freehold.server.core import sse
from freehold.server.core.answering import Choice
from freehold.server.core.problems import Problem
from freehold.server.core.receipt import Tally, context
from freehold.serving import Begin, ModelHandle
from freehold.types import Chunk

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    **dict.fromkeys(("refusal", "content_filter"), "refusal"),
}
_CUT_SHOWN = 200  # characters of arguments that are no JSON


class MessageShape:
    """Implements answering.Shape for the one answer that a request has. `prompt_room`: its max_tokens."""

    content_type = sse.CONTENT_TYPE
    keep = None

    def __init__(self, request_id: bytes, prompt_room: int, *, show_thinking: bool) -> None:
        self._request_id, self._wanted_tokens, self._show = request_id.decode(), prompt_room, show_thinking
        self._blocks = Blocks(show_thinking=show_thinking)
        self._stop = ""
        self._refused = False  # it has a refusal's text
        self._room = prompt_room  # for tokens of the answer, in the context

    def bind(self, model: str, answer_id: str, tally: Tally) -> None:
        self._model, self._tally = model, tally
        self._id = f"msg_{answer_id}"

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        self._room = self._wanted_tokens if begin.budgeted else begin.max_tokens
        self._model = begin.model or self._model

    def opened(self, choice: int, begin: Begin) -> bytes:
        usage, counted = _usage(len(begin.prompt_ids)), begin.usage
        if counted is not None:
            written = counted.written_tokens, counted.written_hour_tokens
            usage = _usage(counted.prompt_tokens, counted.cached_tokens, written, counted.completion_tokens)
        message = {**self._message([], None, usage), "freehold": {"context": context(begin)}}
        return _event({"type": "message_start", "message": message}) + PING

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        self._stop = chunk.stop
        self._refused = self._refused or bool(chunk.refusal)
        return _events(self._blocks.push(chunk))

    def end(self, choice: int, reason: str, last: bool) -> bytes:
        delta = {"stop_reason": self._reason(reason), "stop_sequence": self._stop or None}
        done = {
            "type": "message_delta",
            "delta": delta,
            "usage": self._used(),
            "freehold": self._tally.receipt(),
        }
        return _events(self._blocks.close()) + _event(done)

    def closing(self) -> bytes:
        return _event({"type": "message_stop"})

    def failed(self, trouble: Problem) -> bytes:
        return (
            b"event: error\ndata: " + anthropic_error(replace(trouble, request_id=self._request_id)) + b"\n\n"
        )

    def beat(self) -> bytes:
        return PING

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        (choice,) = choices
        blocks = Blocks(show_thinking=self._show)
        events = [event for chunk in choice.chunks for event in blocks.push(chunk)]
        self._stop, self._refused = choice.chunks[-1].stop, bool(choice.refusal)
        content, cut = folded([*events, *blocks.close()])
        for arguments in cut:
            self._tally.warn(f"the input of a tool_use was cut off: {arguments[:_CUT_SHOWN]}")
        message = self._message(content, self._reason(choice.reason or ""), self._used())
        return {**message, "freehold": self._tally.receipt()}

    def _message(self, content: list[dict[str, Any]], reason: str | None, usage: dict[str, Any]) -> Event:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": self._stop or None,
            "usage": usage,
        }

    def _reason(self, reason: str) -> str:
        if reason == "stop" and self._refused:
            return "refusal"
        if reason == "stop" and self._stop:
            return "stop_sequence"
        if reason == "length" and self._room < self._wanted_tokens:
            return "model_context_window_exceeded"
        return _REASONS[reason]

    def _used(self) -> dict[str, Any]:
        tally = self._tally
        written = tally.written_tokens, tally.written_hour_tokens
        completion, thought = tally.completion_tokens, tally.thought_tokens
        return _usage(tally.prompt_tokens, tally.cached_tokens, written, completion, thought)


def _usage(
    prompt: int, cached: int = 0, written: tuple[int, int] = (0, 0), completion: int = 0, thought: int = 0
) -> dict[str, Any]:
    """Return Anthropic's counts: what was found in a cache, or written to it, is apart from the input."""
    minutes, hour = written
    stored = {"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": hour}
    return {
        "input_tokens": prompt - cached - minutes - hour,
        "cache_creation_input_tokens": minutes + hour,
        **({"cache_creation": stored} if minutes or hour else {}),
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
        "output_tokens_details": {"thinking_tokens": thought},
    }


def _event(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


def _events(events: Iterable[Event]) -> bytes:
    return b"".join(map(_event, events))
