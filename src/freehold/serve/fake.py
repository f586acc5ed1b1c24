"""A ChatModel that answers from a script, for tests of everything that talks to a model.

Knows messages and canned replies; knows no weights, no tokenizer, no network. A word with the space
before it counts as one token. It ships with the package so that users can test their own code with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from freehold.base.errors import EngineClosed, UsageError
from freehold.base.types import (
    Chunk,
    FinishReason,
    Format,
    FormatLike,
    Message,
    OnPrefill,
    Overflow,
    SamplingParams,
    Usage,
    as_format,
)

_WORD = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer; `dropped_messages` stands for an overflow policy's work."""

    text: str
    thinking: str = ""
    dropped_messages: int = 0


@dataclass(frozen=True, slots=True)
class FakeCall:
    """The arguments of one call of `stream`."""

    messages: tuple[Message, ...]
    max_tokens: int | None
    sampling: SamplingParams | None
    stop: tuple[str, ...]
    logprobs: int | None
    think: bool | None
    overflow: Overflow
    format: Format | None = None


@dataclass
class FakeModel:
    """Answer with `replies` in order; an exception among them is raised; a call after the last reply is a UsageError.

    `delay` seconds pass before every piece. `calls` records the arguments.
    """

    replies: Iterable[str | Reply | BaseException]
    name: str = "fake"
    delay: float = 0.0
    calls: list[FakeCall] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self._script = iter(self.replies)

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        think: bool | None = None,
        overflow: Overflow = "error",
        format: FormatLike = None,
        on_prefill: OnPrefill | None = None,
    ) -> Iterator[Chunk]:
        """Yield the next reply word by word; raise UsageError if there is none left."""
        if self.closed:
            raise EngineClosed(f"{self.name} is closed")
        arguments = (tuple(messages), max_tokens, sampling, tuple(stop), logprobs, think, overflow)
        self.calls.append(FakeCall(*arguments, as_format(format)))
        reply = next(self._script, None)
        if reply is None:
            raise UsageError(f"{self.name} was called {len(self.calls)} times and has fewer replies")
        if isinstance(reply, BaseException):
            raise reply
        reply = Reply(reply) if isinstance(reply, str) else reply
        if on_prefill is not None:
            on_prefill(0, _prompt_tokens(messages))
        return self._pieces(reply, _prompt_tokens(messages), max_tokens, stop)

    def check_think(self, think: bool | None) -> None:
        """Accept any value."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Count words."""
        return _prompt_tokens(messages)

    def close(self) -> None:
        """Reject later calls."""
        self.closed = True

    def _pieces(self, reply: Reply, prompt: int, limit: int | None, stop: Sequence[str]) -> Iterator[Chunk]:
        words = [Chunk(thinking=w) for w in _WORD.findall(reply.thinking)]
        words += [Chunk(text=w) for w in _WORD.findall(_before_stop(reply.text, stop))]
        reason: FinishReason = "stop" if limit is None or len(words) <= limit else "length"
        words = words[:limit]
        if reply.dropped_messages:
            yield Chunk(dropped_messages=reply.dropped_messages)
        for i, word in enumerate(words):
            if self.delay:
                time.sleep(self.delay)
            yield Chunk(text=word.text, thinking=word.thinking, token_ids=(i,))
        yield Chunk(finish_reason=reason, usage=Usage(prompt, len(words), prefill_s=0.1, decode_s=0.1))


def _prompt_tokens(messages: Sequence[Message]) -> int:
    return sum(len(_WORD.findall(m.content)) for m in messages)


def _before_stop(text: str, stop: Sequence[str]) -> str:
    cuts = [text.find(s) for s in stop if s and s in text]
    return text[: min(cuts)] if cuts else text
