"""Takes the jobs of one request through a model, and feeds their chunks to a shape, streamed or whole.

The shape (chat or completion) knows the wire; this file knows order: begin, chunks, end, receipt; and who is told when
it goes wrong. Knows no field of a request.
Path: chat.py / completions.py -> Answering.run -> Served.start -> Stream -> Shape -> EventStream or Call
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol

import msgspec

import freehold
from freehold.errors import DeadlineExceeded, EngineClosed, EngineLost, FreeholdError, Overloaded
from freehold.server.call import Call
from freehold.server.contract import Served, Stream
from freehold.server.limits import Gone
from freehold.server.metrics import PerModel
from freehold.server.openai.receipt import Tally, context
from freehold.server.problems import Problem, problem
from freehold.server.sse import DONE, EventStream
from freehold.types import Begin, Chunk, Job, TokenLogprob

FINGERPRINT = f"freehold-{freehold.__version__}"
ABREAST = (
    64  # prompts of one request that are under way at a time: more would fill the queue with one client's
)
_log = logging.getLogger("freehold.server")
encode = msgspec.json.encode


@dataclass(slots=True)
class Choice:
    """One answer, as far as it has come."""

    index: int
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str | None = None

    def add(self, chunk: Chunk) -> None:
        if chunk.text:
            self.text.append(chunk.text)
        if chunk.thinking:
            self.thinking.append(chunk.thinking)
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs


class Shape(Protocol):
    """How a route writes its answers."""

    object: str
    event: str  # the object of an event
    prefix: str  # of the id

    def head(self, common: bytes) -> None:
        """Take what all events begin with: a JSON object that is not closed."""
        ...

    async def begun(self, served: Served, job: int, choices: range, begin: Begin) -> None:
        """Ask the model for what the shape needs before a job's first chunk."""
        ...

    def opened(self, choice: int, begin: Begin, tail: bytes) -> bytes:
        """Return the events that come before any chunk of a choice; `tail` goes in behind the choices."""
        ...

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        """Return the event for a chunk, b"" if it holds nothing to show."""
        ...

    def end(self, choice: int, reason: str, tail: bytes) -> bytes:
        """Return the event that ends a choice; `tail` goes in behind the choices."""
        ...

    def choice(self, choice: Choice, begin: Begin) -> dict[str, Any]:
        """Return a finished choice of a whole answer."""
        ...


class Answering:
    """One generating request: its jobs, their choices, its receipt."""

    def __init__(
        self,
        call: Call,
        shape: Shape,
        jobs: Sequence[Job],
        *,
        keep_alive: float | None,
        warnings: Sequence[str],
    ) -> None:
        self.call, self.shape, self.jobs = call, shape, jobs
        self._keep_alive = keep_alive
        self.id = f"{shape.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.tally = Tally(len(jobs), call.started, warnings)
        self._open = sum(job.n for job in jobs)
        self._first = [0, *accumulate(job.n for job in jobs)]  # number of each job's first choice
        self._abreast = asyncio.Semaphore(ABREAST)
        self._model = ""
        self._record: PerModel | None = None

    async def whole(self, model: str) -> None:
        """Answer with one JSON object."""
        self._model = model
        choices = [Choice(i) for i in range(self._open)]
        first = self._first

        async def keep(job: int, chunks: list[tuple[int, Chunk]]) -> None:
            for index, chunk in chunks:
                choice = choices[first[job] + index]
                choice.add(chunk)
                if chunk.finish_reason is not None:
                    choice.reason = chunk.finish_reason

        async def ignore(job: int, begin: Begin) -> None: ...

        await self.call.while_here(self._run(ignore, keep))
        made: list[dict[str, Any]] = []
        for job, begin in enumerate(self.tally.begins):
            assert begin is not None
            made += [self.shape.choice(c, begin) for c in choices[first[job] : first[job + 1]]]
        await self.call.answer(
            {
                **self._common(),
                "object": self.shape.object,
                "choices": made,
                "usage": self.tally.usage(),
                "freehold": self.tally.receipt(),
            }
        )

    async def stream(self, model: str, include_usage: bool) -> None:
        """Answer with server-sent events; whatever happens, the last one says how it ended."""
        self._model = model
        first = self._first
        self.shape.head(encode({**self._common(), "object": self.shape.event})[:-1])
        async with EventStream(self.call) as events:
            # They go out with the first chunk: clients take the first event for the first token, and time it.
            openings: dict[int, bytes] = {}

            async def opened(job: int, begin: Begin) -> None:
                tail = b',"freehold":' + encode({"context": context(begin)})
                openings[job] = b"".join(self.shape.opened(i, begin, tail) for i in self._choices(job))

            async def send(job: int, chunks: list[tuple[int, Chunk]]) -> None:
                data = [self._events(first[job] + index, chunk, include_usage) for index, chunk in chunks]
                if any(data):
                    await events.send(openings.pop(job, b"") + b"".join(data))

            try:
                await self.call.while_here(self._run(opened, send))
                last = self._usage_event(include_usage) + DONE
            except Gone:
                raise
            except Exception as e:
                if not events.begun:
                    raise
                last = b"data: " + self._failed(e).body + b"\n\n" + DONE
            await events.send(last, more=False)

    async def _run(
        self,
        opened: Callable[[int, Begin], Awaitable[None]],
        sink: Callable[[int, list[tuple[int, Chunk]]], Awaitable[None]],
    ) -> None:
        served = await self._served()
        record = self._record = self.call.server.metrics.of(served.name)
        try:
            if len(self.jobs) == 1:
                await self._follow(served, 0, opened, sink)
            else:
                async with asyncio.TaskGroup() as group:
                    for i in range(len(self.jobs)):
                        group.create_task(self._follow_in_turn(served, i, opened, sink))
        except ExceptionGroup as e:
            self._count(record, e.exceptions[0])
            raise e.exceptions[0] from None
        except Exception as e:
            self._count(record, e)
            raise

    async def _served(self) -> Served:
        """Return the model, loaded within the request's own time."""
        limit = self.jobs[0].timeout_s
        if limit is None:
            return await self.call.server.models.use(self._model)
        try:
            async with asyncio.timeout(max(limit - self.tally.passed_s, 0)):
                return await self.call.server.models.use(self._model)
        except TimeoutError:
            message = f"{self._model} was not in memory after {limit:g} s, the request's own limit"
            raise DeadlineExceeded(message, "give it more time, or load the model first") from None

    def _left(self, job: Job) -> Job:
        """Return the job with what is left of its time: it runs from the request's arrival."""
        if job.timeout_s is None:
            return job
        return replace(job, timeout_s=max(job.timeout_s - self.tally.passed_s, 0.001))

    async def _follow_in_turn(
        self,
        served: Served,
        job: int,
        opened: Callable[[int, Begin], Awaitable[None]],
        sink: Callable[[int, list[tuple[int, Chunk]]], Awaitable[None]],
    ) -> None:
        async with self._abreast:
            await self._follow(served, job, opened, sink)

    async def _follow(
        self,
        served: Served,
        job: int,
        opened: Callable[[int, Begin], Awaitable[None]],
        sink: Callable[[int, list[tuple[int, Chunk]]], Awaitable[None]],
    ) -> None:
        stream = await served.start(self._left(self.jobs[job]), self._keep_alive)
        try:
            self.tally.begun(job, stream.begin, self.jobs[job].max_tokens)
            self.call.server.metrics.of(served.name).began(self.jobs[job].n, stream.begin.max_tokens)
            await self.shape.begun(served, job, self._choices(job), stream.begin)
            await opened(job, stream.begin)
            await self._read(stream, job, sink)
        finally:
            await stream.aclose()

    async def _read(
        self, stream: Stream, job: int, sink: Callable[[int, list[tuple[int, Chunk]]], Awaitable[None]]
    ) -> None:
        record, started = self._record, self.call.started
        assert record is not None
        firsts: dict[int, float] = {}
        lasts: dict[int, float] = {}
        ready: list[tuple[int, Chunk]] = []
        left = self.jobs[job].n
        async for index, chunk in stream:
            now = time.monotonic()
            if chunk.token_ids:
                if index in lasts:
                    record.gap.observe((now - lasts[index]) / len(chunk.token_ids))
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

    def _ended(self, record: PerModel, job: int, chunk: Chunk, first_s: float, whole_s: float) -> None:
        if chunk.finish_reason == "cancelled" or chunk.usage is None:
            raise EngineClosed("the answer was cancelled before its end", "ask again")
        self.tally.ended(job, chunk.usage)
        record.ended(chunk.finish_reason or "", chunk.usage, first_s, whole_s)

    def _events(self, choice: int, chunk: Chunk, include_usage: bool) -> bytes:
        data = self.shape.piece(choice, chunk)
        if chunk.finish_reason is not None:
            self._open -= 1
            last = self._open == 0 and not include_usage
            tail = b',"freehold":' + encode(self.tally.receipt()) if last else b""
            data += self.shape.end(choice, chunk.finish_reason, tail)
        return data

    def _usage_event(self, include_usage: bool) -> bytes:
        if not include_usage:
            return b""
        event = {
            **self._common(),
            "object": self.shape.event,
            "choices": [],
            "usage": self.tally.usage(),
            "freehold": self.tally.receipt(),
        }
        return b"data: " + encode(event) + b"\n\n"

    def _choices(self, job: int) -> range:
        return range(self._first[job], self._first[job + 1])

    def _common(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created": self.created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }

    def _failed(self, e: Exception) -> Problem:
        trouble = problem(e)
        if trouble.status == 500:
            _log.error("request %s failed", self.call.request_id.decode(), exc_info=e)
        return trouble

    def _count(self, record: PerModel, e: BaseException) -> None:
        if isinstance(e, Overloaded):
            record.rejected["queue_full"] += 1
        elif isinstance(e, FreeholdError):
            record.reasons["error"] += 1
