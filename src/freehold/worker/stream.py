"""One job's answers on the server's side: a bounded buffer, and the token log that outlives an engine.

Knows chunks, tokens and limits; knows no socket and no process.
Path: EngineHandle.start -> EngineStream <- Piece; server/openai reads it
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from freehold.errors import DeadlineExceeded, EngineLost, FreeholdError, SlowReader
from freehold.serving import Begin, Job
from freehold.types import Chunk
from freehold.worker.wire import Submit, Writer

MAX_HELD_TOKENS = 4096  # that a reader may be behind; beyond them its stream ends, and no other stream waits


class EngineStream:
    """Iterate for (answer's index, chunk); `aclose` cancels. `begin` is there once `started` returned."""

    def __init__(self, id: int, job: Job, ended: Callable[[EngineStream, bool], None]) -> None:
        self.id, self.job, self.deaths = id, job, 0
        self._loop = asyncio.get_running_loop()
        self._ended = ended  # called once, with whether the engine still works for it
        self._over = self.fell_behind = False
        self.prefill: tuple[int, int] | None = (
            None  # prompt tokens read, and all of them; None: an answer has begun
        )
        # By answer, and grown as chunks come: the job's own numbers are not checked on this side.
        self._log: defaultdict[int, list[int]] = defaultdict(list)
        self._whole: set[int] = set()  # answers whose last chunk has come
        self._queue: deque[tuple[int, Chunk]] = deque()
        self._held = 0
        self._error: FreeholdError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._begin: Begin | None = None
        limit = job.timeout_s if isinstance(job.timeout_s, int | float) else None
        self._until = None if limit is None else self._loop.time() + limit
        self._alarm = None if self._until is None else self._loop.call_at(self._until, self._expire)

    @property
    def begin(self) -> Begin:
        """What the engine reported when it accepted the job."""
        assert self._begin is not None, "begin was used before started() returned"
        return self._begin

    @property
    def more(self) -> bool:
        """Whether the next chunk has arrived, so that `__anext__` does not wait."""
        return bool(self._queue)

    @property
    def job_to_go_on(self) -> Job:
        """The job for an engine that takes another's place: the same seed, and the tokens sent so far."""
        if self._begin is None:
            return self._timed(self.job)
        sampling = {**self.job.sampling, "seed": self._begin.sampling.seed}
        resume = tuple(tuple(self._log[i]) for i in range(self.job.n))
        return self._timed(replace(self.job, sampling=sampling, resume=resume, prompt_logprobs=None))

    def message(self, writer: Writer) -> Submit:
        """Return the message for an engine that takes another's place."""
        return Submit(self.id, writer.raw(self.job_to_go_on))

    def _timed(self, job: Job) -> Job:
        if self._until is None:
            return job
        return replace(job, timeout_s=max(self._until - self._loop.time(), 0.001))

    # --- the reader's side -------------------------------------------------------------------------

    async def started(self) -> None:
        """Wait until the engine has accepted the job; raise the error of a refusal."""
        while self._begin is None:
            await self._wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        """Return the next chunk; raise the error the stream ended with."""
        while not self._queue:
            if self._over and self._error is None:
                raise StopAsyncIteration
            await self._wait()
        index, chunk = self._queue.popleft()
        self._held -= len(chunk.token_ids)
        return index, chunk

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        await self._waiter

    async def aclose(self) -> None:
        """Stop the job, at any phase. Safe to call twice."""
        self._end(working=True)

    # --- the engine's side -------------------------------------------------------------------------

    def began(self, begin: Begin) -> None:
        """Note that the job was accepted; an engine that takes over reports the same again, of the same weights."""
        if self._begin is None:
            self._begin = begin
            self._wake()
        elif begin.weights != self._begin.weights:
            self.fail(
                EngineLost(
                    "the engine died, and the model's file was replaced: its answer would end in other weights",
                    "ask again: the file that is there now answers",
                )
            )

    def gain(self, index: int, chunk: Chunk) -> None:
        """Add a chunk. What a new engine repeats of a finished answer is not passed on."""
        if self._over or index in self._whole:
            return
        self.prefill = None
        self._log[index] += chunk.token_ids
        self._held += len(chunk.token_ids)
        self._queue.append((index, chunk))
        if self._held > MAX_HELD_TOKENS:
            self._fall_behind()
        if chunk.finish_reason is not None:
            self._whole.add(index)
        self._wake()
        if len(self._whole) == self.job.n:
            self._end(working=False)

    def fail(self, error: FreeholdError, *, working: bool = False) -> None:
        """End the stream with an error. Unread chunks are dropped if the engine was `working`."""
        if self._over:
            return
        self._error = error
        if working:
            self._queue.clear()
        self._wake()
        self._end(working)

    def _fall_behind(self) -> None:
        self.fell_behind = True
        message = (
            f"the reader of this stream fell {self._held:,} tokens behind; the limit is {MAX_HELD_TOKENS:,}"
        )
        self.fail(SlowReader(message, "read faster, or ask for fewer tokens at a time"), working=True)

    def _expire(self) -> None:
        self.fail(
            DeadlineExceeded(
                "the answer was not whole in its time",
                "give it more time, or ask for fewer tokens",
            ),
            working=True,
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, working: bool) -> None:
        if not self._over:
            self._over = True
            if self._alarm is not None:
                self._alarm.cancel()
            self._ended(self, working)
