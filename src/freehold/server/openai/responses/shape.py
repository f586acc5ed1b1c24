"""How a response looks: an object with items, or numbered events that end with exactly one that says how.

Knows JSON and server-sent events; the items are output.py's.
Path: Answering -> ResponseShape -> bytes, and what is to be kept of the answer -> store.py
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from freehold.server.core import sse
from freehold.server.core.answering import Choice
from freehold.server.core.longjson import in_pieces
from freehold.server.core.problems import Problem
from freehold.server.core.receipt import Tally, context
from freehold.server.openai.responses.fields import IN_THE_OPEN
from freehold.server.openai.responses.output import Event, Output
from freehold.server.openai.responses.store import Keeping
from freehold.serving import Begin, ModelHandle
from freehold.types import Chunk

encode = msgspec.json.encode
# How an answer ended -> why its response is incomplete; a refusal is whole, and an item of it says so.
_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseShape:
    """Implements answering.Shape for one answer. `echo`: the fields of the request that its answer repeats."""

    content_type = sse.CONTENT_TYPE

    def __init__(self, echo: dict[str, Any], output: Output, keeping: Keeping | None) -> None:
        self._echo, self._output, self._keeping = echo, output, keeping
        self._begin: Begin | None = None
        self._reason = ""
        self._number = 0  # of the next event

    def bind(self, model: str, answer_id: str, tally: Tally) -> None:
        self._tally = tally
        head = {"id": f"resp_{answer_id}", "object": "response", "created_at": int(time.time())}
        self._base = {**head, "model": model, **self._echo}

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        """Name the model that answers."""
        self._base["model"] = begin.model or self._base["model"]

    def opened(self, choice: int, begin: Begin) -> bytes:
        """Note what the engine took in; whatever event comes first brings the opening ones with it."""
        self._begin = begin
        return b""

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        return self._events(self._output.add(chunk))

    def end(self, choice: int, reason: str, last: bool) -> bytes:
        self._reason = reason
        return self._events(map(in_pieces, self._output.finish(whole=reason not in _CUT)))

    def closing(self) -> bytes:
        response = in_pieces(self._ended())
        return self._events([{"type": f"response.{response['status']}", "response": response}])

    def keep(self) -> None:
        if self._keeping is not None:
            self._keeping.put()

    def failed(self, trouble: Problem) -> bytes:
        self._output.cut()
        error = {"code": _code(trouble), "message": trouble.message, "param": trouble.param}
        response = self._response("failed", error={**error, "type": trouble.kind, **trouble.extra})
        return self._events([{"type": "response.failed", "response": response}])

    def beat(self) -> bytes:
        return sse.COMMENT

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        (choice,) = choices
        self._begin, self._reason = choice.begin, choice.reason or ""
        for chunk in choice.chunks:
            for _ in self._output.add(chunk):
                pass
        for _ in self._output.finish(whole=self._reason not in _CUT):
            pass
        return in_pieces(self._ended())

    def _ended(self) -> dict[str, Any]:
        """Return the finished response, prepared to be kept if that was asked for."""
        cut = _CUT.get(self._reason)
        why = {"incomplete_details": {"reason": cut}} if cut else {}
        times = {} if cut else {"completed_at": int(time.time())}
        if any("encrypted_content" in item for item in self._output.items):
            self._tally.retract(IN_THE_OPEN)
        more = {**why, **times, "usage": self._usage(), "freehold": self._tally.receipt()}
        response = self._response("incomplete" if cut else "completed", **more)
        labels = self._begin.labels if self._begin is not None else ()
        lost = self._keeping.prepare(response, labels) if self._keeping else ""
        if lost:
            response["store"] = False
            response["freehold"]["warnings"] = [*response["freehold"]["warnings"], lost]
        return response

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        used = self._begin.sampling if self._begin else None
        return {
            **self._base,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "temperature": used and used.temperature,
            "top_p": used and used.top_p,
            "output": self._output.items,
            "usage": None,
            **more,
        }

    def _usage(self) -> dict[str, Any]:
        read, completion = self._tally.prompt_tokens, self._tally.completion_tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {
                "cached_tokens": self._tally.cached_tokens,
                "cache_write_tokens": self._tally.written_tokens + self._tally.written_hour_tokens,
            },
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": self._tally.thought_tokens},
            "total_tokens": read + completion,
        }

    def _events(self, events: Iterable[Event]) -> bytes:
        """Number and write events; before the first one, those that open a response."""
        listed = list(events)
        if not listed:
            return b""
        return b"".join(self._event(each) for each in [*self._opening(), *listed])

    def _opening(self) -> list[Event]:
        if self._number:
            return []
        response = {**self._response("in_progress"), "output": []}
        if self._begin is not None:
            response["freehold"] = {"context": context(self._begin)}
        return [
            {"type": "response.created", "response": response},
            {"type": "response.in_progress", "response": response},
        ]

    def _event(self, event: Event) -> bytes:
        data = encode({"type": event["type"], "sequence_number": self._number, **event})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)


def _code(trouble: Problem) -> str:
    """Return the code by which clients tell what to do: wait, shorten the chat, or give up."""
    if trouble.status == 429:
        return "rate_limit_exceeded"
    if trouble.status >= 500:
        return "server_error"
    own = ("context_length_exceeded", "insufficient_quota", "policy_refused")
    return trouble.code if trouble.code in own else "invalid_prompt"
