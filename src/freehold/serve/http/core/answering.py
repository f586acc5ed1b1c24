"""Passes the answers of one request to a shape, streamed or whole.

The shape (of one of the protocols) knows the wire; this file knows the order (begin, chunks, end) and how errors are
reported; computing.py reads the model. Knows no field of a request and no protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import msgspec

from freehold.base.serving import Begin, Job, ModelHandle
from freehold.base.types import Chunk, TokenLogprob, ToolCall
from freehold.serve.http.core.call import APART, HttpCall
from freehold.serve.http.core.computing import AnswerRounds, Computing, Cut, Fit
from freehold.serve.http.core.fields import Pictures
from freehold.serve.http.core.limits import Gone
from freehold.serve.http.core.problems import Problem
from freehold.serve.http.core.receipt import Tally

SCORE = 100  # bytes of a log-probability in an answer, with its token


@dataclass(slots=True)
class Choice:
    """One answer so far."""

    index: int
    begin: Begin
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str | None = None
    chunks: list[Chunk] = field(default_factory=list)  # all chunks, for shapes in which order matters

    def add(self, chunk: Chunk) -> None:
        """Add a chunk."""
        self.chunks.append(chunk)
        if chunk.text:
            self.text.append(chunk.text)
        if chunk.thinking:
            self.thinking.append(chunk.thinking)
        if chunk.refusal:
            self.refusal.append(chunk.refusal)
        for piece in chunk.tool_calls:
            piece.join(self.tool_calls)
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.reason = chunk.finish_reason or self.reason


class AnswerShape(Protocol):
    """How a route writes its answers. Pieces of a stream are bytes, b"" if there is nothing to send."""

    content_type: bytes  # of a stream

    @property
    def keep(self) -> Callable[[], None] | None:
        """What keeps the answer for later requests, once it is written; None where it is not kept."""
        ...

    def bind(self, model: str, answer_id: str, tally: Tally) -> None:
        """Take the model's name, the id by which the ledger has the answer, and the counts, first of all.

        `tally` is filled while answers arrive.
        """
        ...

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        """Ask the model for what the shape needs before a job's first chunk."""
        ...

    def opened(self, choice: int, begin: Begin) -> bytes:
        """Begin a choice; sent with its first piece."""
        ...

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        """Write a chunk's text, thinking and tool calls."""
        ...

    def end(self, choice: int, reason: str, last: bool) -> bytes:
        """End a choice. `last`: the others have ended, and the tally is whole."""
        ...

    def closing(self) -> bytes:
        """End a successful stream."""
        ...

    def failed(self, trouble: Problem) -> bytes:
        """End a failed stream."""
        ...

    def beat(self) -> bytes:
        """Return a keep-alive message."""
        ...

    def whole(self, choices: Sequence[Choice]) -> object:
        """Return the answer as one JSON value."""
        ...


class Answering:
    """One generating request: its choices, and how they are sent."""

    def __init__(
        self,
        call: HttpCall,
        shape: AnswerShape,
        jobs: Sequence[Job],
        *,
        keep_alive: float | None,
        warnings: Sequence[str],
        fit: Fit | None = None,
        pictures: Pictures | None = None,
        cut: Cut | None = None,
        rounds: AnswerRounds | None = None,
    ) -> None:
        """The options are those of Computing."""
        self.call, self.shape = call, shape
        self._computing = Computing(
            call,
            jobs,
            keep_alive=keep_alive,
            warnings=warnings,
            fit=fit,
            pictures=pictures,
            cut=cut,
            rounds=rounds,
        )
        call.ending += jobs
        self._open = sum(job.n for job in jobs)
        self._first = [0, *accumulate(job.n for job in jobs)]  # number of each job's first choice
        self._scored = any(job.logprobs is not None for job in jobs)

    async def whole(self, model: str) -> None:
        """Answer with one JSON value."""
        self._computing.keeps = True
        self._bind(model)
        choices: dict[int, Choice] = {}

        async def opened(served: ModelHandle, job: int, begin: Begin) -> None:
            await self.shape.begun(served, job, self._choices(job), begin)
            choices.update((i, Choice(i, begin)) for i in self._choices(job))

        async def keep(job: int, chunks: list[tuple[int, Chunk]]) -> None:
            self._hold_scores(chunks)
            for index, chunk in chunks:
                choices[self._first[job] + index].add(chunk)

        await self.call.while_here(self._computing.run(model, opened, keep))
        ordered = [choices[i] for i in sorted(choices)]
        size = SCORE * sum(_scores(choice.logprobs) for choice in ordered) if self._scored else 0
        await self.call.in_turn()  # many end in one step
        data = await self.call.apart(self._encoded, ordered, size=size)
        if self.shape.keep is not None:
            self.shape.keep()
        await self.call.answer(data)

    def _encoded(self, choices: Sequence[Choice]) -> bytes:
        return msgspec.json.encode(self.shape.whole(choices))

    async def stream(self, model: str) -> None:
        """Stream the answer; the last event always says how it ended."""
        self._bind(model)
        reading = lambda: self._computing.prefill  # noqa: E731
        async with EventStream(self.call, self.shape.content_type, self.shape.beat, reading) as events:
            # Sent with the first chunk: clients measure the time to the first event as the time to the first token.
            openings: dict[int, bytes] = {}
            scores = 0

            async def opened(served: ModelHandle, job: int, begin: Begin) -> None:
                await self.shape.begun(served, job, self._choices(job), begin)
                openings[job] = b"".join(self.shape.opened(i, begin) for i in self._choices(job))

            async def send(job: int, chunks: list[tuple[int, Chunk]]) -> None:
                nonlocal scores
                if self.shape.keep is not None:
                    scores += self._hold_scores(chunks)
                # An answer that is kept has all its log-probabilities once more at its end.
                if SCORE * scores > APART and any(chunk.finish_reason is not None for _, chunk in chunks):
                    data = await self.call.apart(self._written, job, chunks, size=SCORE * scores)
                else:
                    data = self._written(job, chunks)
                if data:
                    await events.send(openings.pop(job, b"") + data)

            try:
                await self.call.while_here(self._computing.run(model, opened, send))
                if self.shape.keep is None:
                    last = self.shape.closing()
                else:
                    last = await self.call.apart(self.shape.closing, size=SCORE * scores)
                    self.shape.keep()
            except Gone:
                raise
            except Exception as e:
                if not events.begun:
                    raise
                last = self.shape.failed(self.call.problem(e))
            await events.send(last, more=False)

    def _hold_scores(self, chunks: Sequence[tuple[int, Chunk]]) -> int:
        """Count log-probabilities that are kept to the answer's end as the caller's, and return how many they are.

        Raises Refused (429, 503) where there is no room for them.
        """
        if not self._scored:
            return 0
        scores = sum(_scores(chunk.logprobs) for _, chunk in chunks)
        if scores:
            self.call.hold(SCORE * scores)
        return scores

    def _bind(self, model: str) -> None:
        self.call.work.model = model
        self.shape.bind(model, self.call.answer_id, self._computing.tally)

    def _written(self, job: int, chunks: Sequence[tuple[int, Chunk]]) -> bytes:
        return b"".join(self._pieces(self._first[job] + index, chunk) for index, chunk in chunks)

    def _pieces(self, choice: int, chunk: Chunk) -> bytes:
        data = self.shape.piece(choice, chunk)
        if chunk.finish_reason is not None:
            self._open -= 1
            data += self.shape.end(choice, chunk.finish_reason, self._open == 0)
        return data

    def _choices(self, job: int) -> range:
        return range(self._first[job], self._first[job + 1])


def _scores(logprobs: Sequence[TokenLogprob]) -> int:
    """Return how many log-probabilities tokens have, with their alternatives."""
    return len(logprobs) * (1 + len(logprobs[0].top)) if logprobs else 0


# --- one stream to one client, with a sign of life while nothing happens ----------------------------
# The response begins late on purpose: an error before the first event still gets its own status, unless ten silent
# seconds passed and a beat had to go out.

CONTENT_TYPE = b"text/event-stream; charset=utf-8"  # server-sent events
COMMENT = b": keep-alive\n\n"  # which their readers leave out
PREFILL = b": prefill %d %d\n\n"  # tokens of the prompt that are read, and all; remote/__init__.py reads it
PREFILL_S = 1.0  # between two of them
HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the events back
]


class EventStream:
    """Use in `async with`: the timer for beats runs inside. `beat` writes what a client reads over.

    `prefill`: tokens of the prompt that are read, and all of them; server-sent events tell it in a comment each second.
    """

    def __init__(
        self,
        call: HttpCall,
        content_type: bytes = CONTENT_TYPE,
        beat: Callable[[], bytes] = lambda: COMMENT,
        prefill: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        self._prefill = prefill if content_type == CONTENT_TYPE else lambda: None
        self._headers, self._beat = [(b"content-type", content_type), *HEADERS], beat
        self._call, self._lock = call, asyncio.Lock()
        self._every = call.server.keep_alive_s
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventStream:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(min(self._every, PREFILL_S), self._tick)
        self._call.server.metrics.streams += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()
        self._call.server.metrics.streams -= 1

    @property
    def begun(self) -> bool:
        return self._call.status != 0

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send whole events; waits while the client's buffers are full. Raises Gone for one that takes nothing."""
        async with self._lock:
            if self._call.complete:  # a beat that waited while the last event went out
                return
            if not self.begun:
                await self._call.head(200, self._headers)
            await self._call.body(data, more=more)

    def _tick(self) -> None:
        """Send a beat if nothing else went out, or the prompt's progress."""
        silent = time.monotonic() - self._call.taken_at
        read = self._prefill()
        every = self._every if read is None else min(self._every, PREFILL_S)
        if self._lock.locked():  # a client that is slow to take what was sent
            silent = every - PREFILL_S
        elif silent >= every:
            self._beating = self._loop.create_task(self._send_beat(PREFILL % read if read else self._beat()))
            silent = 0.0
        self._timer = self._loop.call_later(min(max(every - silent, 0.001), PREFILL_S), self._tick)

    async def _send_beat(self, data: bytes) -> None:
        with suppress(Gone):  # HttpCall.while_here sees the connection go, and ends the work
            await self.send(data)
