"""An answer: the settings it is requested with, the chunks as they arrive, and the report at its end.

Knows chunks, counts and options; knows no terminal and no session.
Path: run or chat.Chat -> StreamedAnswer.shown for each chunk -> warnings, as_json, speeds
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from freehold.cli.chat.loops import ADVICE, LoopGuard
from freehold.cli.chat.markdown import Renderer
from freehold.cli.chat.waiting import Waiting
from freehold.serving import ModelInfo
from freehold.types import (
    Chunk,
    FinishReason,
    Format,
    Overflow,
    SamplingParams,
    TokenLogprob,
    Usage,
)


@dataclass(slots=True)
class AnswerSettings:
    """Sampling and limits of the answers to come; `/set` and `/think` change them."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    overflow: Overflow = "error"
    format: Format | None = None

    def stream_options(self) -> dict[str, Any]:
        """Return the keywords of ChatModel.stream."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(slots=True)
class StreamedAnswer:
    """An answer while it arrives."""

    text: str = ""
    thinking: str = ""
    usage: Usage | None = None
    stopped: bool = False  # by Ctrl-C
    cut: bool = False  # max_tokens or the context ended it
    dropped: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: int = 0
    first: float = 0.0
    last: float = 0.0
    guard: LoopGuard | None = None
    looped: bool = False  # stopped by the loop guard

    def add(self, chunk: Chunk) -> None:
        """Add a chunk."""
        if self.guard is not None:
            self.looped = self.guard.add(chunk.thinking + chunk.text)
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.pieces += len(chunk.token_ids)
        self.text += chunk.text
        self.thinking += chunk.thinking
        self.usage = chunk.usage or self.usage
        self.dropped += chunk.dropped_messages
        self.logprobs += chunk.logprobs
        self.cut = self.cut or chunk.finish_reason == "length"

    def shown(self, chunk: Chunk, renderer: Renderer, waiting: Waiting) -> bool:
        """Add a chunk and show it; return whether the answer repeats itself and must stop."""
        self.add(chunk)
        waiting.chunk(chunk)
        renderer.think(chunk.thinking)
        renderer.feed(chunk.text)
        return self.looped

    @property
    def finish_reason(self) -> FinishReason:
        """How it ended."""
        return "cancelled" if self.stopped or self.looped else "length" if self.cut else "stop"

    @property
    def tokens_per_second(self) -> float:
        """Decode speed measured by the engine, or here for an answer that was stopped."""
        if self.usage is not None:
            return self.usage.decode_tok_s
        return (self.pieces - 1) / (self.last - self.first) if self.last > self.first else 0.0


def stop(stream: Iterator[Chunk]) -> None:
    """Close a stream before its end, which stops the model within one step."""
    if isinstance(stream, Generator):
        stream.close()


def warnings(info: ModelInfo, answer: StreamedAnswer, settings: AnswerSettings) -> list[str]:
    lines = []
    if answer.dropped:
        lines.append(f"context full: the {answer.dropped} oldest messages were left out")
    if answer.looped:
        lines.append(f"stopped: the answer repeats itself; {ADVICE}")
    used = answer.usage.prompt_tokens + answer.usage.completion_tokens if answer.usage else 0
    if answer.cut and used >= info.context:
        lines.append(f"cut: the context of {info.context:,} tokens is full")
    elif answer.cut:
        lines.append(f"cut after --max-tokens {settings.max_tokens}")
    return lines


_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "drafted_tokens", "accepted_tokens")


def as_json(
    info: ModelInfo, answer: StreamedAnswer, settings: AnswerSettings, notes: list[str]
) -> dict[str, Any]:
    usage = answer.usage
    timings = {"load_s": round(info.load_s, 4)}
    if usage is not None:
        for name in ("prefill_s", "decode_s", "prefill_tok_s", "decode_tok_s"):
            timings[name] = round(getattr(usage, name), 4)
    used = usage.prompt_tokens + usage.completion_tokens if usage else 0
    plain = {
        "model": info.name,
        "text": answer.text,
        "thinking": answer.thinking,
        "finish_reason": answer.finish_reason,
        "seed": settings.sampling.seed,
        "usage": {n: getattr(usage, n) for n in _COUNTS} if usage else None,
        "timings": timings,
        "context": {
            "limit": info.context,
            "note": info.context_note,
            "used": used,
            "dropped_messages": answer.dropped,
        },
        "warnings": notes,
    }
    if answer.logprobs:
        plain["logprobs"] = [_token_json(p) for p in answer.logprobs]
    return plain


def _token_json(p: TokenLogprob) -> dict[str, Any]:
    text = p.token.decode("utf-8", "replace")
    return {"token_id": p.token_id, "logprob": p.logprob, "top": p.top, "text": text}


def speeds(answer: StreamedAnswer) -> str:
    """Return the line that --verbose prints after an answer."""
    usage = answer.usage
    if usage is None:
        return ""
    cached = f", {usage.cached_tokens:,} of them cached" if usage.cached_tokens else ""
    guessed = ""
    if usage.drafted_tokens:
        guessed = (
            f"; {usage.accepted_tokens:,} of {usage.drafted_tokens:,} drafted tokens accepted, "
            f"{usage.tokens_per_step:.2f} tokens per step"
        )
    return (
        f"prefill {usage.prompt_tokens:,} tokens at {usage.prefill_tok_s:,.1f} tok/s{cached}; "
        f"decode {usage.completion_tokens:,} tokens at {usage.decode_tok_s:,.1f} tok/s{guessed}"
    )
