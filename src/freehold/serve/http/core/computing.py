"""Runs the jobs of one call on a model: started within limits, read, counted for metrics, log line and receipt.

Every protocol and the page's runs compute through it, so there is one way to a token. Knows jobs, streams and the
limits of a call; knows no wire.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

from freehold.base.errors import DeadlineExceeded, EngineClosed, EngineLost, Overloaded, SlowReader
from freehold.base.serving import MAX_SCORES, Begin, Job, ModelHandle, ModelInfo, Stream, prefill_of
from freehold.base.types import Chunk, Usage
from freehold.serve.http.core.call import ServerCall
from freehold.serve.http.core.fields import Pictures, seeing
from freehold.serve.http.core.media import checked
from freehold.serve.http.core.metrics import PerModel
from freehold.serve.http.core.problems import Refused, problem
from freehold.serve.http.core.receipt import Tally
from freehold.serve.worker.wire import MAX_PICTURES_BYTES

# Prompts of one request that are in progress at a time: more would fill the queue with one client's.
ABREAST = 64
FULL_WAIT_S = 0.5  # at least, before a queue that is full of the request's own prompts is asked again

Opened = Callable[[ModelHandle, int, Begin], Awaitable[None]]
Sink = Callable[[int, list[tuple[int, Chunk]]], Awaitable[None]]
Cut = Callable[[Chunk], tuple[Chunk, bool]]  # what is kept of a chunk, and whether the answer ends with it
Fit = Callable[[Job, ModelInfo, Tally], Job]


class AnswerRounds(Protocol):
    """Tools that run within an answer: each round of its model's calls is followed by a job with their results."""

    def take(self, chunk: Chunk) -> Chunk:
        """Take in a chunk, and return it without the end of its round: `after` says whether the answer ends."""
        ...

    async def after(self, job: Job, info: ModelInfo, begin: Begin, sink: Sink) -> Job | None:
        """Run the calls of a round, and return the job that continues the answer; None once its end is in `sink`."""
        ...


def without_unseen(call: ServerCall, *, again: bool = False) -> Fit:
    """Return a fit that leaves out the pictures of tools' results that a model is not shown.

    No user sent them: they are not refused. `again`: the same prompt may be computed again, so no text of it names
    models that happen to be in memory; a warning does.
    """

    def fit(job: Job, info: ModelInfo, tally: Tally) -> Job:
        from freehold.serve.tools.pictures import shown_to  # a server starts without the room of tools

        messages = job.messages or ()
        who = [] if info.can_see else seeing(call)
        shown = shown_to(messages, info.can_see, MAX_PICTURES_BYTES, () if again else who)
        if shown == tuple(messages):
            return job
        can = f"; of the models in memory, {', '.join(who)} can read pictures" if who else ""
        why = "a request has too many" if info.can_see else f"{info.name} reads text only{can}"
        tally.warn(f"pictures of tools were left out: {why}")
        return replace(job, messages=shown)

    return fit


class Computing:
    """The jobs of one call. `tally` is filled while their answers arrive."""

    def __init__(
        self,
        call: ServerCall,
        jobs: Sequence[Job],
        *,
        keep_alive: float | None,
        warnings: Sequence[str],
        fit: Fit | None = None,
        pictures: Pictures | None = None,
        cut: Cut | None = None,
        rounds: AnswerRounds | None = None,
    ) -> None:
        """`fit` adapts a job to the loaded model, and warns of what it leaves out; `pictures`: those of the jobs.

        `cut`: ends the one answer of one job early, as if it had been so long; `rounds`: continue that answer.
        """
        self.call, self.jobs = call, jobs
        self._keep_alive, self._fit, self._pictures = keep_alive, fit, pictures
        self.tally = Tally(jobs, call.started, warnings)
        self._cut, self._rounds = cut, rounds
        self._abreast = asyncio.Semaphore(ABREAST) if len(jobs) > ABREAST else nullcontext()
        self.keeps = False  # whether log-probabilities are kept until all of the answer is there,
        self._scores = 0  # and how many
        self._record: PerModel | None = None
        self._stream: Stream | None = None  # the latest one

    async def run(self, model: str, opened: Opened, sink: Sink) -> None:
        """Compute all answers. `opened` is called before a job's first chunk, `sink` with chunks as they come.

        Raises what ends them early; the metrics have counted it.
        """
        served = await self._served(model)
        self.tally.load_s = self.tally.passed_s
        if self._pictures is not None:
            self.jobs = await checked(self.call, self._pictures, served.info, self.jobs)
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

    @property
    def prefill(self) -> tuple[int, int] | None:
        """How many tokens of the prompt are read, and how many there are; None once its answer has begun."""
        return prefill_of(self._stream)

    async def _served(self, model: str) -> ModelHandle:
        """Return the model, loaded within the request's own time."""
        limit = self.jobs[0].timeout_s
        if limit is None:
            return await self.call.models.use(model)
        try:
            async with asyncio.timeout(max(limit - self.tally.passed_s, 0)):
                return await self.call.models.use(model)
        except TimeoutError:
            message = f"{model} was not in memory after {limit:g} s, the request's own limit"
            raise DeadlineExceeded(message, "give it more time, or load the model first") from None

    def _left(self, job: Job) -> Job:
        """Return the job with the rest of its time, which counts from the request's arrival, and its client."""
        if job.timeout_s is None and job.client == self.call.caller:
            return job
        left = None if job.timeout_s is None else max(job.timeout_s - self.tally.passed_s, 0.001)
        return replace(job, timeout_s=left, client=self.call.caller)

    async def _follow_in_turn(self, served: ModelHandle, job: int, opened: Opened, sink: Sink) -> None:
        limit = self.jobs[job].timeout_s
        try:
            async with self._abreast:
                await self._follow(served, job, opened, sink)
        except DeadlineExceeded as e:  # raised with the time that was left; the request's own limit is added
            if limit is None:
                raise
            raise DeadlineExceeded(f"{e.message}; the request's own limit is {limit:g} s", e.hint) from None

    async def _follow(self, served: ModelHandle, job: int, opened: Opened, sink: Sink) -> None:
        begin = await self._one_round(served, job, job, opened, sink)
        if self._rounds is None:
            return
        current, self.jobs = self.jobs[job], list(self.jobs)
        while (following := await self._rounds.after(current, served.info, begin, sink)) is not None:
            current = self.jobs[job] = following
            begin = await self._one_round(served, job, self.tally.another(following), _as_before, sink)

    async def _one_round(
        self, served: ModelHandle, job: int, number: int, opened: Opened, sink: Sink
    ) -> Begin:
        """Compute a job to its end. `number`: by which the tally has it."""
        stream = self._stream = await self._started(served, job)
        try:
            self._check_scores(self.jobs[job], stream.begin)
            self.tally.begun(number, stream.begin)
            self.call.work.prompt_tokens += len(stream.begin.prompt_ids)
            self.call.answered_by = self.call.answered_by or stream.begin.model
            self.call.work.answers += self.jobs[job].n
            self.call.server.metrics.of(served.name).began(self.jobs[job].n, stream.begin.max_tokens)
            await opened(served, job, stream.begin)
            await self._read(stream, job, number, sink)
        finally:
            await stream.aclose()
        return stream.begin

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
        if self.keeps and job.logprobs is not None:
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

    async def _read(self, stream: Stream, job: int, number: int, sink: Sink) -> None:
        record, started, work = self._record, self.call.started, self.call.work
        assert record is not None
        firsts: dict[int, float] = {}
        lasts: dict[int, float] = {}
        ready: list[tuple[int, Chunk]] = []
        left = self.jobs[job].n
        async for index, chunk in stream if self._cut is None else self._cut_short(stream, self._cut):
            now = time.monotonic()
            self.tally.came(chunk)
            tokens = len(chunk.token_ids)  # an upstream engine reports none
            if tokens or chunk.text or chunk.thinking or chunk.tool_calls:
                work.came(tokens, now - started)
                if index in lasts:
                    record.gap.observe((now - lasts[index]) / (tokens or 1))
                else:
                    firsts[index] = now - started
                    if number == job:  # a later round of an answer is not its beginning
                        record.first.observe(now - started)
                lasts[index] = now
            if chunk.finish_reason is not None:
                left -= 1
                self._ended(record, number, chunk, firsts.get(index, now - started), now - started)
            ready.append((index, chunk if self._rounds is None else self._rounds.take(chunk)))
            if not stream.more:
                await sink(job, ready)
                ready = []
        if ready:
            await sink(job, ready)
        if left:
            raise EngineLost("the engine's stream ended before its answers did")
        record.longest.observe(self.tally.longest(number))

    async def _cut_short(self, stream: Stream, cut: Cut) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield an answer up to where `cut` ends it; the engine is then stopped with the stream."""
        generated = 0
        async for index, chunk in stream:
            generated += len(chunk.token_ids)
            kept, enough = cut(chunk)
            if enough and chunk.finish_reason is None:
                usage = Usage(len(stream.begin.prompt_ids), generated)
                yield index, replace(kept, finish_reason="length", usage=usage)
                return
            yield index, kept

    def _ended(self, record: PerModel, job: int, chunk: Chunk, first_s: float, whole_s: float) -> None:
        if chunk.finish_reason == "cancelled" or chunk.usage is None:
            raise EngineClosed("the answer was cancelled before its end", "try again")
        self.tally.ended(job, chunk.usage)
        work = self.call.work
        work.cached_tokens, work.prompt_tokens = self.tally.cached_tokens, self.tally.prompt_tokens
        work.answer_tokens = max(work.answer_tokens, self.tally.completion_tokens)
        work.picture_s = self.tally.picture_s
        record.ended(chunk.finish_reason or "", chunk.usage, first_s, whole_s)

    def _count(self, record: PerModel, e: BaseException) -> None:
        if isinstance(e, Overloaded):
            record.rejected["queue_full"] += 1
        elif isinstance(e, SlowReader):
            record.reasons["slow_reader"] += 1
        elif problem(e).status >= 500:  # an invalid request is not an error of the server
            record.reasons["error"] += 1


async def _as_before(served: ModelHandle, job: int, begin: Begin) -> None:
    """Do nothing: a round continues an answer that is open."""
