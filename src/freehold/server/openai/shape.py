"""What OpenAI's generating answers share: ids, the frame of an event, usage, the receipt, how a stream ends.

Knows JSON and server-sent events; a subclass knows its choices.
Path: Answering -> ChatShape or TextShape -> bytes
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from freehold.server.core import sse
from freehold.server.core.answering import Choice
from freehold.server.core.problems import Problem, openai_error
from freehold.server.core.receipt import Tally, context
from freehold.serving import Begin, ModelHandle
from freehold.types import Chunk
from freehold.version import __version__

FINGERPRINT = f"freehold-{__version__}"
DONE = b"data: [DONE]\n\n"
encode = msgspec.json.encode


class OpenAIShape(ABC):
    """Implements answering.Shape but for what a choice looks like."""

    object: str  # of a whole answer
    event: str  # of an event
    prefix: str  # of the id
    content_type = sse.CONTENT_TYPE
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
        return sse.COMMENT

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
