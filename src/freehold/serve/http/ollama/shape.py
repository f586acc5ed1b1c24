"""How Ollama's answers are written: an object a line, the last one with counts and nanoseconds.

A client that meets an empty line fails, so a beat is a whole object that says nothing. A tool call is written once
it is whole, its arguments an object. Knows the wire; knows no route and no model.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from freehold.base.errors import ModelNotFound, Overloaded
from freehold.base.serving import Begin, ModelHandle
from freehold.base.types import Chunk, TokenLogprob, ToolCall
from freehold.base.version import __version__
from freehold.serve.http.core.answering import Choice
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import finite
from freehold.serve.http.core.problems import Problem, Refused, problem
from freehold.serve.http.core.receipt import Tally

# How this protocol words errors, and the few answers that clients look at before they trust a server.
NDJSON = b"application/x-ndjson"
# Clients compare it with the first version that had what they need: VS Code wants 0.6.4 or later, and digits only.
COMPATIBLE = "0.18.3"


def is_ours(path: str) -> bool:
    """Tell whether a path belongs to this protocol."""
    return path.startswith("/api/") or path == "/api"


def ollama_error(p: Problem) -> bytes:
    """Word a problem as Ollama does: one text."""
    message = p.message.replace('"overflow": "drop-oldest"', '"truncate": true')  # its name in this protocol
    if p.code == "context_length_exceeded" and "truncate" not in message:
        message += '; in a request "truncate": true leaves out the oldest messages'
    return msgspec.json.encode({"error": message})


def as_here(trouble: Problem, model: str) -> Problem:
    """Say what this protocol's clients look for: "not found" with the name, and 503 where the queue is full."""
    if trouble.code == "model_not_found":
        return replace(trouble, message=f"model {model[:200]!r} not found: {trouble.message}")
    if trouble.status == 429:
        return replace(trouble, status=503)
    return trouble


def refusal(e: Overloaded | ModelNotFound, model: str) -> Refused:
    """Return the same as an error that the Gate answers with."""
    p = as_here(problem(e), model)
    return Refused(p.status, p.message, param=p.param, code=p.code, headers=tuple(p.headers))


async def greeting(call: HttpCall) -> None:
    """Answer the sentence that some clients look for before they use Ollama's protocol."""
    await call.answer(b"Ollama is running", kind=b"text/plain; charset=utf-8")


async def version(call: HttpCall) -> None:
    """Return the supported version of Ollama's API."""
    await call.answer({"version": COMPATIBLE, "freehold": __version__})


encode = msgspec.json.encode
_REASONS = ("length", "content_filter", "refusal")  # any other is "stop" here


def now() -> str:
    """Return the time as RFC 3339 has it."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(2)  # a stream writes many lines a second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def ns(seconds: float) -> int:
    """Return nanoseconds."""
    return round(seconds * 1e9)


class OllamaShape(ABC):
    """Implements AnswerShape for one answer; a subclass knows where its text goes."""

    content_type = NDJSON
    keep = None

    written_text: bytes  # where a line has a text

    def __init__(self, *, logprobs: bool, context: int | None, ids: bool = False) -> None:
        """`context`: the room that the request asked for. `ids`: end with those of all that was read and written."""
        self._logprobs, self._context = logprobs, context
        self._ids: list[int] | None = [] if ids else None
        self._calls: list[ToolCall] = []
        self._written = 0  # calls that went out

    def bind(self, model: str, answer_id: str, tally: Tally) -> None:
        self._model, self._tally = model, tally
        self._named = encode(model)

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        """Say when the model has less room than was asked for: a longer chat will be refused, not cut."""
        self._model = begin.model or self._model
        self._named = encode(self._model)
        if self._context is not None and self._context > begin.context > 0:
            self._tally.warn(
                f"num_ctx is {self._context:,}, and the model has a context of {begin.context:,} tokens; "
                "a longer prompt is refused; only the server's operator can raise the limit"
            )

    def opened(self, choice: int, begin: Begin) -> bytes:
        return b""

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        if self._ids is not None:
            self._ids += chunk.token_ids
        calls = self._gained(chunk)
        scored = _scored(chunk.logprobs) if self._logprobs and chunk.logprobs else None
        text = chunk.text + chunk.refusal
        if not (chunk.thinking or calls or scored):
            return self._plain(text) if text else b""
        more = {"logprobs": scored} if scored else {}
        return self._line(**self.content(text, chunk.thinking, calls), done=False, **more)

    def end(self, choice: int, reason: str, last: bool) -> bytes:
        calls = [written(c, i) for i, c in enumerate(self._calls) if i >= self._written]
        self._written = len(self._calls)
        return self._line(**self.content("", "", [c for c in calls if c]), **self._ending(reason))

    def closing(self) -> bytes:
        return b""

    def failed(self, trouble: Problem) -> bytes:
        return ollama_error(as_here(trouble, self._model)) + b"\n"

    def beat(self) -> bytes:
        return self._line(**self.content("", "", []), done=False)

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        choice = choices[0]
        if self._ids is not None:
            self._ids += choice.token_ids
        self._calls = choice.tool_calls
        calls = [w for i, call in enumerate(choice.tool_calls) if (w := written(call, i))]
        content = self.content("".join((*choice.text, *choice.refusal)), "".join(choice.thinking), calls)
        scored = {"logprobs": _scored(choice.logprobs)} if self._logprobs else {}
        return {**self._head(), **content, **scored, **self._ending(choice.reason or "stop")}

    # --- where a route puts it -----------------------------------------------------------------------

    @abstractmethod
    def content(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a line says of the answer."""
        ...

    # --- lines -------------------------------------------------------------------------------------

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": now()}

    def _line(self, **fields: Any) -> bytes:
        return encode({**self._head(), **fields}) + b"\n"

    def _plain(self, text: str) -> bytes:
        """Return a line with a text alone, as nearly all are."""
        values = (self._named, now().encode(), self.written_text % encode(text))
        return b'{"model":%b,"created_at":"%b",%b"done":false}\n' % values

    def _gained(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Take pieces of calls in; return those that are whole because another one began."""
        for piece in chunk.tool_calls:
            piece.join(self._calls)
        before, self._written = self._written, max(len(self._calls) - 1, self._written)
        return [w for i in range(before, self._written) if (w := written(self._calls[i], i))]

    def _ending(self, reason: str) -> dict[str, Any]:
        tally = self._tally
        if any(written(c, i) is None for i, c in enumerate(self._calls)):
            tally.warn("a tool call was cut off by the answer's end, and left out")
        begin, context = tally.begins[0], {}
        if self._ids is not None and begin is not None:
            context = {"context": [*begin.prompt_ids, *self._ids]}
        return {
            "done": True,
            "done_reason": reason if reason in _REASONS else "stop",
            **context,
            "total_duration": ns(tally.passed_s),
            "load_duration": ns(tally.load_s),
            **self._picture_times(),
            "prompt_eval_count": tally.prompt_tokens,
            "prompt_eval_duration": ns(sum(u.prefill_s for u in tally.usages)),
            "eval_count": tally.completion_tokens,
            "eval_duration": ns(sum(u.decode_s for u in tally.usages)),
            "freehold": tally.receipt(),
        }

    def _picture_times(self) -> dict[str, int]:
        """Return what decoding pictures and computing them took; Ollama itself has no field for it."""
        seen = self._tally.picture_s
        if seen is None:
            return {}
        return {"image_decode_duration": ns(seen[0]), "image_encode_duration": ns(seen[1])}


class OllamaChatShape(OllamaShape):
    """Lines of /api/chat."""

    written_text = b'"message":{"role":"assistant","content":%b},'

    def content(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class OllamaTextShape(OllamaShape):
    """Lines of /api/generate."""

    written_text = b'"response":%b,'

    def content(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"response": text, **({"thinking": thinking} if thinking else {})}


def written(call: ToolCall, index: int) -> dict[str, Any] | None:
    """Return a call as it is written; None for one whose arguments are no whole object."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:
        return None
    if not isinstance(arguments, dict):
        return None
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def loaded(model: str, reason: str, started: float, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request that only loads or unloads a model."""
    passed = ns(time.monotonic() - started)
    return {
        "model": model,
        "created_at": now(),
        **fields,
        "done": True,
        "done_reason": reason,
        "total_duration": passed,
        "load_duration": passed,
    }


def _scored(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            **_token(t.token, t.logprob),
            "top_logprobs": [_token(s, p) for (_, p), s in zip(t.top, t.top_tokens, strict=True)],
        }
        for t in tokens
    ]


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(token)}
