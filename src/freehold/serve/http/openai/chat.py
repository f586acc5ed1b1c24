"""POST /v1/chat/completions: a chat in, an assistant's message out.

Knows OpenAI's chat shapes; answering.py runs the steps of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.base.serving import Begin, Job
from freehold.base.types import Chunk, TokenLogprob, ToolCall, ToolPiece
from freehold.serve.http.core.answering import Answering, Choice
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import Pictures, finite, seconds
from freehold.serve.http.core.longjson import SCORES, long_list
from freehold.serve.http.openai.fields.chat import (
    ChatRequest,
    chat_job,
    unknown_fields,
    unknown_message_fields,
)
from freehold.serve.http.openai.fields.generating import format_field
from freehold.serve.http.openai.fields.offers import Offered, input_of, unknown_tool_fields
from freehold.serve.http.openai.shape import OpenAIShape, encode


async def chat(call: HttpCall) -> None:
    """Answer a chat."""
    request, raw = await call.struct(ChatRequest)
    call.fields = {"format": format_field(request), "tools": "tools"}
    pictures, warnings = Pictures(), list[str]()

    def read() -> tuple[Job, Offered]:
        warnings.extend(unknown_fields(raw, ChatRequest))
        warnings.extend(unknown_message_fields(raw["messages"]))
        warnings.extend(unknown_tool_fields(raw.get("tools") or ()))
        return chat_job(request, call.tenant, call.caller, warnings, pictures)

    job, offered = await call.apart(read)
    options = request.stream_options
    shape = ChatShape(
        bool(options and options.include_usage),
        logprobs=job.logprobs is not None,
        ids=bool(request.return_token_ids),
        custom=offered.custom,
    )
    keep_alive = seconds(request.keep_alive)
    answering = Answering(call, shape, [job], keep_alive=keep_alive, warnings=warnings, pictures=pictures)
    await (answering.stream if request.stream else answering.whole)(request.model)


class ChatShape(OpenAIShape):
    """chat.completion and chat.completion.chunk. `custom`: names of free-form tools."""

    object, event, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, include_usage: bool, *, logprobs: bool, ids: bool, custom: frozenset[str]) -> None:
        super().__init__(include_usage)
        self._logprobs, self._ids, self._custom = logprobs, ids, custom
        self._refused: set[int] = set()  # choices with a refusal's text
        self._written: dict[tuple[int, int], str] = {}  # arguments of free-form calls, by choice and call

    def first(self, choice: int, begin: Begin, tail: bytes) -> bytes:
        if self._ids and begin.prompt_ids:
            tail += b',"prompt_token_ids":' + encode(begin.prompt_ids)
        return self._event(choice, b'{"role":"assistant","content":""}', b"null", tail)

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        parts = []
        if chunk.thinking:
            thinking = encode(chunk.thinking)
            parts += [b'"reasoning_content":' + thinking, b'"reasoning":' + thinking]
        if chunk.refusal:
            self._refused.add(choice)
            parts.append(b'"refusal":' + encode(chunk.refusal))
        if chunk.tool_calls:
            parts.append(b'"tool_calls":' + encode([self._piece(choice, p) for p in chunk.tool_calls]))
        more = b""
        if self._logprobs and chunk.logprobs:
            more += b',"logprobs":' + encode(chat_logprobs(chunk.logprobs, self._ids))
        if self._ids and chunk.token_ids:
            more += b',"token_ids":' + encode(chunk.token_ids)
        if chunk.text or (more and not parts):
            parts.append(b'"content":' + encode(chunk.text))
        return self._event(choice, b"{" + b",".join(parts) + b"}", b"null", b"", more) if parts else b""

    def _piece(self, choice: int, piece: ToolPiece) -> dict[str, Any]:
        """Return a call's delta: id, type and name come with its first piece only, a free-form text with the end."""
        call, use = (choice, piece.index), {"name": piece.name} if piece.name else {}
        if piece.name in self._custom or call in self._written:
            self._written[call] = self._written.get(call, "") + piece.arguments
            kind, use["input"] = "custom", ""
        else:
            kind, use["arguments"] = "function", piece.arguments
        begun = {"id": piece.id, "type": kind} if piece.id else {}
        return {"index": piece.index, **begun, kind: use}

    def last(self, choice: int, reason: str, tail: bytes) -> bytes:
        texts = {call: input_of(text) for (of, call), text in self._written.items() if of == choice}
        calls = [{"index": call, "custom": {"input": text}} for call, text in texts.items()]
        reason = _reason(reason, choice in self._refused)
        return self._event(choice, encode({"tool_calls": calls} if calls else {}), encode(reason), tail)

    def choice(self, choice: Choice) -> dict[str, Any]:
        text, refusal = "".join(choice.text), "".join(choice.refusal) or None
        content = None if (choice.tool_calls or refusal) and not text else text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": refusal}
        if choice.tool_calls:
            message["tool_calls"] = [_call(c, self._custom) for c in choice.tool_calls]
        if choice.thinking:
            message["reasoning_content"] = message["reasoning"] = "".join(choice.thinking)
        logprobs = None
        if self._logprobs:
            logprobs = chat_logprobs(choice.logprobs, self._ids)
            logprobs["content"] = long_list(logprobs["content"], SCORES)
        out = {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _reason(choice.reason or "", refusal is not None),
        }
        return {**out, "token_ids": choice.token_ids} if self._ids else out

    def _event(self, choice: int, delta: bytes, reason: bytes, tail: bytes, more: bytes = b"") -> bytes:
        values = (self._head, choice, delta, reason, more, tail)
        return b'%b%d,"delta":%b,"finish_reason":%b%b}]%b}\n\n' % values


def _reason(reason: str, refused: bool) -> str:
    """Return OpenAI's word: a refusal with a text is an answer, and one without it is the filter's."""
    if reason != "refusal":
        return reason
    return "stop" if refused else "content_filter"


def _call(call: ToolCall, custom: frozenset[str]) -> dict[str, Any]:
    if call.name in custom:
        text = {"name": call.name, "input": input_of(call.arguments)}
        return {"id": call.id, "type": "custom", "custom": text}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def chat_logprobs(tokens: Sequence[TokenLogprob], ids: bool) -> dict[str, Any]:
    """Return the chat shape: each token with its bytes and its alternatives."""
    return {"content": [_scored(t, ids) for t in tokens], "refusal": None}


def _scored(t: TokenLogprob, ids: bool) -> dict[str, Any]:
    top = [_token(id if ids else None, s, p) for (id, p), s in zip(t.top, t.top_tokens, strict=True)]
    return {**_token(t.token_id if ids else None, t.token, t.logprob), "top_logprobs": top}


def _token(id: int | None, token: bytes, logprob: float) -> dict[str, Any]:
    """Describe a token; one that holds a part of a character shows it truly only in `bytes`."""
    out = {"token": token.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(token)}
    return out if id is None else {**out, "id": id}
