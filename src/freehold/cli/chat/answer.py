"""An answer: the settings it is requested with, the chunks as they arrive, and the report at its end.

Knows chunks, counts and options; knows no terminal and no session.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, fields
from itertools import cycle
from typing import Any, Self, get_args

from freehold.base.options import option
from freehold.base.serving import ModelInfo
from freehold.base.types import Chunk, FinishReason, Format, Overflow, SamplingParams, TokenLogprob, Usage
from freehold.cli.chat.markdown import Renderer


@dataclass(slots=True)
class AnswerSettings:
    """Sampling and limits of the answers to come; `/set` and `/think` change them."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = option(None, "Stop after this many tokens.", least=1)
    stop: tuple[str, ...] = option((), "Stop the answer before TEXT; repeatable.", metavar="TEXT")
    think: bool | None = option(None, "Turn reasoning on or off, if the model supports it.", off="no-think")
    overflow: Overflow = option(
        "error",
        "When the context is full: fail, or drop the oldest messages with a warning.",
        choices=get_args(Overflow),
        shown=False,
    )
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
    warnings: tuple[str, ...] = ()  # of the prompt, from what computes it
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
        self.warnings += chunk.warnings
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
    lines = [*answer.warnings]
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
        if usage.opening_s or usage.encoding_s:
            timings |= {"opening_s": round(usage.opening_s, 4), "encoding_s": round(usage.encoding_s, 4)}
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
    pictures = ""
    if usage.opening_s or usage.encoding_s:
        pictures = f"pictures decoded in {usage.opening_s:.2f} s, encoded in {usage.encoding_s:.2f} s; "
    return (
        f"{pictures}prefill {usage.prompt_tokens:,} tokens at {usage.prefill_tok_s:,.1f} tok/s{cached}; "
        f"decode {usage.completion_tokens:,} tokens at {usage.decode_tok_s:,.1f} tok/s{guessed}"
    )


# --- detects an answer that repeats itself endlessly, as small models do ----------------------------
# An endless loop is text that a compressor reduces to almost nothing: of its last characters, at most one in
# 22 remains. Prose keeps one in 2 or 3, a table of numbers one in 4, JSON of equal records one in 10.

# Characters checked. The first finds a phrase of a few words, the last a passage of some 400 characters, each after
# about twenty rounds of it.
WINDOWS = (1_200, 2_400, 4_800, 9_600)
REMAINS = 1 / 22
EVERY = 200  # characters between two checks: a check of 9,600 takes some 50 us

ADVICE = "--no-loop-guard turns this off; --repetition-penalty 1.1 or another model often helps"


class LoopGuard:
    """Checks one answer: `add` returns True once the answer is a loop."""

    def __init__(self) -> None:
        self._tail = ""
        self._unseen = 0

    def add(self, text: str) -> bool:
        """Add the next piece of the answer."""
        self._tail = (self._tail + text)[-WINDOWS[-1] :]
        self._unseen += len(text)
        if self._unseen < EVERY:
            return False
        self._unseen = 0
        return any(repeats(self._tail[-size:]) for size in WINDOWS if len(self._tail) >= size)


def repeats(text: str) -> bool:
    """Return whether a text is one short passage repeated."""
    raw = text.encode("utf-8", "replace")
    return len(zlib.compress(raw, 6)) < REMAINS * len(raw)


# --- what a person sees while no text comes ---------------------------------------------------------
# How much of the prompt is read, or how many tokens of a tool call are made.
# One line of stderr, renewed in place.  Without a terminal it shows nothing.

FIRST_S = 0.5  # of silence before anything is shown: a short prompt shows nothing
EVERY_S = 0.25
WHEEL = "-\\|/"  # turns while a count stands still: a step of prefill may take a second


class Waiting:
    """Use in `with`; call it with the tokens read and all of them as they are computed, and `chunk` for each chunk.

    Text takes the line away until the next silence: the result of a tool is a prompt of its own. `silent`: the text
    is not shown either.
    """

    def __init__(self, *, silent: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._silent = clock, silent
        self._lock = threading.Lock()
        self._live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._ended = threading.Event()
        self._shown = self._quiet = False
        self._begin()

    def _begin(self) -> None:
        self._since = self._clock()
        self._hidden_tokens = 0  # tokens of which nothing is shown
        self._read: tuple[int, int] | None = None
        # When the first count came, and how much was there already
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        if self._live:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self.over()

    def __call__(self, done: int, total: int) -> None:
        """Take the number of prompt tokens that are read, and of all."""
        with self._lock:
            if self._quiet:
                self._quiet = False
                self._begin()
            self._first = self._first or (self._clock(), done)
            self._read = done, total

    def chunk(self, chunk: Chunk) -> None:
        """Take the line away for a text, and at the end; count the tokens of anything else."""
        if chunk.usage is not None or ((chunk.text or chunk.thinking) and not self._silent):
            return self.over()
        with self._lock:
            if self._quiet:
                self._quiet = False
                self._begin()
            self._hidden_tokens += len(chunk.token_ids)
        return None

    def over(self) -> None:
        """Take the line away: something else is shown now."""
        with self._lock:
            if self._shown:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._shown, self._quiet = False, True

    def line(self) -> str:
        """Return what is shown now: tokens, and the seconds left by the speed so far."""
        now = self._clock()
        if self._hidden_tokens:
            return f"answering: {self._hidden_tokens:,} tokens, {now - self._since:.1f} s"
        if self._read is None or self._first is None:
            return f"waiting for the model, {now - self._since:.1f} s"
        done, total = self._read
        begun, cached = self._first
        told = f"reading the prompt: {done:,} of {total:,} tokens"
        if done <= cached or now <= begun:
            return f"{told}, {now - self._since:.1f} s"
        return f"{told}, {(total - done) * (now - begun) / (done - cached):.0f} s left"

    def _tick(self) -> None:
        for turn in cycle(WHEEL):
            if self._ended.wait(EVERY_S):
                return
            with self._lock:
                if not self._quiet and self._clock() - self._since >= FIRST_S and not self._ended.is_set():
                    sys.stderr.write(f"\r\x1b[K{turn} {self.line()}")
                    sys.stderr.flush()
                    self._shown = True
