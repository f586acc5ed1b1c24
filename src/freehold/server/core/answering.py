"""Runs the jobs of one request on a model, and passes their chunks to a shape, streamed or whole.

The shape (of one of the protocols) knows the wire; this file knows the order (begin, chunks, end) and how errors are
reported. Knows no field of a request and no protocol.
Path: openai/chat.py and its like -> Answering.stream -> ModelHandle.start -> Stream -> AnswerShape -> EventStream
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

from freehold.errors import DeadlineExceeded, EngineClosed, EngineLost, Overloaded, SlowReader
from freehold.server.core.call import HttpCall
from freehold.server.core.limits import Gone
from freehold.server.core.metrics import PerModel
from freehold.server.core.pictures import Pictures
from freehold.server.core.problems import Problem, Refused, problem
from freehold.server.core.receipt import Tally
from freehold.server.core.sse import EventStream
from freehold.serving import MAX_SCORES, Begin, Job, ModelHandle, ModelInfo, Stream
from freehold.types import Chunk, TokenLogprob, ToolCall

# Prompts of one request that are in progress at a time: more would fill the queue with one client's.
ABREAST = 64
FULL_WAIT_S = 0.5  # at least, before a queue that is full of the request's own prompts is asked again


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


Sink = Callable[[int, list[tuple[int, Chunk]]], Awaitable[None]]
Opened = Callable[[int, Begin], Awaitable[None]]
Fit = Callable[[Job, ModelInfo, Tally], Job]


class Answering:
    """One generating request: its jobs, their choices, its receipt."""

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
    ) -> None:
        """`fit` adapts a job to the loaded model, and warns of what it leaves out; `pictures`: those of the jobs."""
        self.call, self.shape, self.jobs = call, shape, jobs
        self._keep_alive, self._fit, self._pictures = keep_alive, fit, pictures
        self.tally = Tally(jobs, call.started, warnings)
        self._open = sum(job.n for job in jobs)
        self._first = [0, *accumulate(job.n for job in jobs)]  # number of each job's first choice
        self._abreast = asyncio.Semaphore(ABREAST) if len(jobs) > ABREAST else nullcontext()
        self._keeps, self._scores = (
            False,
            0,
        )  # log-probabilities that are held until all of the answer is sent
        self._model = ""
        self._record: PerModel | None = None

    async def whole(self, model: str) -> None:
        """Answer with one JSON value."""
        self._keeps = True
        self._bind(model)
        choices: dict[int, Choice] = {}

        async def opened(job: int, begin: Begin) -> None:
            choices.update((i, Choice(i, begin)) for i in self._choices(job))

        async def keep(job: int, chunks: list[tuple[int, Chunk]]) -> None:
            for index, chunk in chunks:
                choices[self._first[job] + index].add(chunk)

        await self.call.while_here(self._run(opened, keep))
        await self.call.answer(self.shape.whole([choices[i] for i in sorted(choices)]))

    async def stream(self, model: str) -> None:
        """Stream the answer; the last event always says how it ended."""
        self._bind(model)
        async with EventStream(self.call, self.shape.content_type, self.shape.beat) as events:
            # Sent with the first chunk: clients measure the time to the first event as the time to the first token.
            openings: dict[int, bytes] = {}

            async def opened(job: int, begin: Begin) -> None:
                openings[job] = b"".join(self.shape.opened(i, begin) for i in self._choices(job))

            async def send(job: int, chunks: list[tuple[int, Chunk]]) -> None:
                data = b"".join(self._pieces(self._first[job] + index, chunk) for index, chunk in chunks)
                if data:
                    await events.send(openings.pop(job, b"") + data)

            try:
                await self.call.while_here(self._run(opened, send))
                last = self.shape.closing()
            except Gone:
                raise
            except Exception as e:
                if not events.begun:
                    raise
                last = self.shape.failed(self.call.problem(e))
            await events.send(last, more=False)

    def _bind(self, model: str) -> None:
        self._model = self.call.work.model = model
        self.shape.bind(model, self.call.answer_id, self.tally)

    def _pieces(self, choice: int, chunk: Chunk) -> bytes:
        data = self.shape.piece(choice, chunk)
        if chunk.finish_reason is not None:
            self._open -= 1
            data += self.shape.end(choice, chunk.finish_reason, self._open == 0)
        return data

    async def _run(
        self,
        opened: Opened,
        sink: Sink,
    ) -> None:
        served = await self._served()
        self.tally.load_s = self.tally.passed_s
        if self._pictures is not None:
            self._pictures.check(served.info)
        if self._fit is not None:
            self.jobs = [self._fit(job, served.info, self.tally) for job in self.jobs]
        record = self._record = self.call.server.metrics.of(served.name)
        try:
            if len(self.jobs) == 1:
                await self._follow_in_turn(served, 0, opened, sink)
            else:
                async with asyncio.TaskGroup() as group:
                    for i in range(len(self.jobs)):
                        group.create_task(self._follow_in_turn(served, i, opened, sink))
        except asyncio.CancelledError:
            record.reasons["abort"] += 1
            raise
        except ExceptionGroup as e:
            self._count(record, e.exceptions[0])
            raise e.exceptions[0] from None
        except Exception as e:
            self._count(record, e)
            raise

    async def _served(self) -> ModelHandle:
        """Return the model, loaded within the request's own time."""
        limit = self.jobs[0].timeout_s
        if limit is None:
            return await self.call.models.use(self._model)
        try:
            async with asyncio.timeout(max(limit - self.tally.passed_s, 0)):
                return await self.call.models.use(self._model)
        except TimeoutError:
            message = f"{self._model} was not in memory after {limit:g} s, the request's own limit"
            raise DeadlineExceeded(message, "give it more time, or load the model first") from None

    def _left(self, job: Job) -> Job:
        """Return the job with the rest of its time, which counts from the request's arrival."""
        if job.timeout_s is None:
            return job
        return replace(job, timeout_s=max(job.timeout_s - self.tally.passed_s, 0.001))

    async def _follow_in_turn(
        self,
        served: ModelHandle,
        job: int,
        opened: Opened,
        sink: Sink,
    ) -> None:
        limit = self.jobs[job].timeout_s
        try:
            async with self._abreast:
                await self._follow(served, job, opened, sink)
        except DeadlineExceeded as e:  # raised with the time that was left; the request's own limit is added
            if limit is None:
                raise
            raise DeadlineExceeded(f"{e.message}; the request's own limit is {limit:g} s", e.hint) from None

    async def _follow(
        self,
        served: ModelHandle,
        job: int,
        opened: Opened,
        sink: Sink,
    ) -> None:
        stream = await self._started(served, job)
        try:
            self._check_scores(self.jobs[job], stream.begin)
            self.tally.begun(job, stream.begin)
            self.call.work.prompt_tokens += len(stream.begin.prompt_ids)
            self.call.answered_by = self.call.answered_by or stream.begin.model
            self.call.work.answers += self.jobs[job].n
            self.call.server.metrics.of(served.name).began(self.jobs[job].n, stream.begin.max_tokens)
            await self.shape.begun(served, job, self._choices(job), stream.begin)
            await opened(job, stream.begin)
            await self._read(stream, job, sink)
        finally:
            await stream.aclose()

    async def _started(self, served: ModelHandle, job: int) -> Stream:
        """Start a job; if the queue is full of jobs of this request, wait for them."""
        while True:
            try:
                return await served.start(self._left(self.jobs[job]), self._keep_alive)
            except Overloaded as e:
                if not any(self.tally.begins):
                    raise
                await asyncio.sleep(max(e.wait_s, FULL_WAIT_S))

    def _check_scores(self, job: Job, begin: Begin) -> None:
        """Refuse (400) more log-probabilities than one answer may hold, before any of them is kept."""
        if self._keeps and job.logprobs is not None:
            self._scores += job.n * begin.max_tokens * (1 + job.logprobs)
        if job.prompt_logprobs is not None:
            self._scores += len(begin.prompt_ids) * (1 + job.prompt_logprobs)
        if self._scores > MAX_SCORES:
            raise Refused(
                400,
                f"log-probabilities of prompts and of up to {begin.max_tokens:,} tokens in each answer, with "
                f"{job.logprobs or 0} alternatives, are {self._scores:,} numbers in one answer; the limit is "
                f"{MAX_SCORES:,}: ask for fewer alternatives, tokens, answers or prompts, or for a stream",
                code="too_many_logprobs",
            )

    async def _read(self, stream: Stream, job: int, sink: Sink) -> None:
        record, started, work = self._record, self.call.started, self.call.work
        assert record is not None
        firsts: dict[int, float] = {}
        lasts: dict[int, float] = {}
        ready: list[tuple[int, Chunk]] = []
        left = self.jobs[job].n
        async for index, chunk in stream:
            now = time.monotonic()
            self.tally.came(chunk)
            tokens = len(chunk.token_ids)  # an upstream engine reports none
            if tokens or chunk.text or chunk.thinking or chunk.tool_calls:
                work.came(tokens, now - started)
                if index in lasts:
                    record.gap.observe((now - lasts[index]) / (tokens or 1))
                else:
                    firsts[index] = now - started
                    record.first.observe(now - started)
                lasts[index] = now
            if chunk.finish_reason is not None:
                left -= 1
                self._ended(record, job, chunk, firsts.get(index, now - started), now - started)
            ready.append((index, chunk))
            if not stream.more:
                await sink(job, ready)
                ready = []
        if ready:
            await sink(job, ready)
        if left:
            raise EngineLost("the engine's stream ended before its answers did")
        record.longest.observe(self.tally.longest(job))

    def _ended(self, record: PerModel, job: int, chunk: Chunk, first_s: float, whole_s: float) -> None:
        if chunk.finish_reason == "cancelled" or chunk.usage is None:
            raise EngineClosed("the answer was cancelled before its end", "ask again")
        self.tally.ended(job, chunk.usage)
        work = self.call.work
        work.cached_tokens, work.prompt_tokens = self.tally.cached_tokens, self.tally.prompt_tokens
        work.answer_tokens = max(work.answer_tokens, self.tally.completion_tokens)
        record.ended(chunk.finish_reason or "", chunk.usage, first_s, whole_s)

    def _choices(self, job: int) -> range:
        return range(self._first[job], self._first[job + 1])

    def _count(self, record: PerModel, e: BaseException) -> None:
        if isinstance(e, Overloaded):
            record.rejected["queue_full"] += 1
        elif isinstance(e, SlowReader):
            record.reasons["slow_reader"] += 1
        elif problem(e).status >= 500:  # an invalid request is not an error of the server
            record.reasons["error"] += 1
