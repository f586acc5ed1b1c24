"""Anthropic's message, whole and as events with names, cut into content blocks; and its errors.

Knows JSON and server-sent events. A message has a field `freehold` besides Anthropic's: clients ignore fields that they
do not know.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from freehold.base.serving import Begin, ModelHandle
from freehold.base.types import Chunk, SignedThinking, ToolPiece
from freehold.serve.http.core.answering import CONTENT_TYPE, Choice
from freehold.serve.http.core.auth import Headers
from freehold.serve.http.core.problems import INVALID, Problem
from freehold.serve.http.core.receipt import Tally, context

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    **dict.fromkeys(("refusal", "content_filter"), "refusal"),
}
_CUT_SHOWN = 200  # characters of arguments that are no JSON


class MessageShape:
    """Implements AnswerShape for the one answer that a request has. `prompt_room`: its max_tokens."""

    content_type = CONTENT_TYPE
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


# --- content blocks: thinking, text, and a block for each call of a tool ----------------------------
# A stream sends the events as they come, and a whole answer is folded from the same ones, so the two cannot differ.

Event = dict[str, Any]
_CARRIED = "text-"


class Blocks:
    """One answer's blocks. `show_thinking` False: the text of thinking is in its block's signature only."""

    def __init__(self, *, show_thinking: bool = True) -> None:
        self._show = show_thinking
        self._index = -1  # of the block that is open or was last
        self._open = ""  # its type, or nothing
        self._call = -1  # index of the call that was last
        self._thought: list[str] = []

    def push(self, chunk: Chunk) -> Iterator[Event]:
        """Return what a chunk opens, adds and closes."""
        if chunk.thinking:
            yield from self._in("thinking", {"thinking": "", "signature": ""})
            self._thought.append(chunk.thinking)
            if self._show:
                yield self._delta("thinking_delta", thinking=chunk.thinking)
        for block in chunk.signed:
            yield from self._signed(block)
        if text := chunk.text + chunk.refusal:
            yield from self._in("text", {"text": ""})
            yield self._delta("text_delta", text=text)
        for piece in chunk.tool_calls:
            yield from self._called(piece)

    def close(self) -> Iterator[Event]:
        """End the block that is open."""
        if self._open == "thinking":
            yield self._delta("signature_delta", signature=_signature("".join(self._thought), self._show))
            self._thought = []
        yield from self._stopped()

    def _stopped(self) -> Iterator[Event]:
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _signed(self, block: SignedThinking) -> Iterator[Event]:
        """End a block of thinking with its provider's own signature; a redacted one is a block of its own."""
        if block.redacted:
            yield from self._in("redacted_thinking", {"data": block.redacted})
            yield from self.close()
            return
        if self._open != "thinking":
            yield from self._in("thinking", {"thinking": "", "signature": ""})
            if block.text and self._show:
                yield self._delta("thinking_delta", thinking=block.text)
        yield self._delta("signature_delta", signature=block.signature)
        self._thought = []
        yield from self._stopped()

    def _called(self, piece: ToolPiece) -> Iterator[Event]:
        if piece.index != self._call:
            yield from self.close()
            self._call = piece.index
            yield from self._in("tool_use", {"id": piece.id, "name": piece.name, "input": {}})
        if piece.arguments:
            yield self._delta("input_json_delta", partial_json=piece.arguments)

    def _in(self, kind: str, begun: dict[str, Any]) -> Iterator[Event]:
        if self._open == kind:
            return
        yield from self.close()
        self._open, self._index = kind, self._index + 1
        yield {"type": "content_block_start", "index": self._index, "content_block": {"type": kind, **begun}}

    def _delta(self, kind: str, **gained: str) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, **gained}}


def _signature(thought: str, shown: bool) -> str:
    """Return a signature for clients that require one; it is not checked. A thought that is not shown is inside it."""
    if shown:
        return "sha256-" + hashlib.sha256(thought.encode()).hexdigest()[:32]
    return _CARRIED + base64.urlsafe_b64encode(thought.encode()).decode()


def thought_in(signature: str) -> str:
    """Return the thought inside a signature, or "": a model continues from its reasoning before a call."""
    if not signature.startswith(_CARRIED):
        return ""
    try:
        return base64.urlsafe_b64decode(signature[len(_CARRIED) :].encode()).decode()
    except ValueError:
        return ""


def folded(events: Iterable[Event]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the blocks that events describe, and the arguments of calls that were cut off before they were JSON."""
    blocks: list[dict[str, Any]] = []
    gained: list[dict[str, list[str]]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
            gained.append({})
        elif event["type"] == "content_block_delta":
            for name, text in event["delta"].items():
                if name != "type":
                    gained[-1].setdefault(name, []).append(text)
    cut: list[str] = []
    for block, parts in zip(blocks, gained, strict=True):
        texts = {name: "".join(pieces) for name, pieces in parts.items()}
        if block["type"] == "tool_use":
            block["input"] = _input(texts.get("partial_json", ""), cut)
        else:
            block.update(texts)
    return blocks, cut


def _input(arguments: str, cut: list[str]) -> dict[str, Any]:
    """Return a call's arguments; {} for those that are not an object, which are added to `cut`."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        cut.append(arguments)
        return {}


# --- errors as Anthropic words them, also those that come before any route is found -----------------

VERSION = b"anthropic-version"  # the header that every client of Anthropic's sends
# A server that is full or on its way out: Anthropic's clients know that as 529.
STATUSES = {503: 529}
_KINDS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Clients find the two numbers in Anthropic's own sentence, and shorten the chat by them.
_TOO_LONG = re.compile(r"prompt has ([\d,]+) tokens; .* with a context of ([\d,]+)", re.S)


def speaks(path: str, headers: Headers) -> bool:
    """Return whether a request is in Anthropic's protocol."""
    return VERSION in headers or path.startswith("/v1/messages")


def anthropic_error(p: Problem) -> bytes:
    """Word a problem as Anthropic does; what it has no place for is in `freehold`."""
    kind = _KINDS.get(p.status, INVALID if p.status < 500 else "api_error")
    more = {"code": p.code, "param": p.param, **p.extra}
    error = {"type": kind, "message": _message(p)}
    body = {"type": "error", "error": error, "request_id": p.request_id or None, "freehold": more}
    return msgspec.json.encode(body)


def _message(p: Problem) -> str:
    if p.code != "context_length_exceeded":
        return p.message
    match = _TOO_LONG.search(p.message)
    numbers = f"{match[1]} tokens > {match[2]} maximum; ".replace(",", "") if match else ""
    return f"prompt is too long: {numbers}{p.message}"
