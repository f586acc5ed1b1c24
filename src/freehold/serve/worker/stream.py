"""A job's stream on the server's side, with the token log that outlives an engine; and calls with one reply.

Knows chunks, tokens and limits; knows no socket and no process.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

from freehold.base.errors import DeadlineExceeded, EngineLost, FreeholdError, Overloaded, SlowReader
from freehold.base.serving import Begin, EmbedJob, Job, Vectors
from freehold.base.types import Chunk
from freehold.serve.worker.wire import ModelCall, Submit, Writer, size

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


# --- calls of a model that have one reply instead of a stream: token counts, embeddings, adapters ---

# Pending calls of one model. A call that counts tokens holds its text until its reply, and two threads tokenize a
# megabyte of it a second; a portion of texts to embed takes some tenths of a second of steps.
MOST_CALLS: dict[str, int] = {"tokens": 64, "embed": 256}
MOST_CALLS_SIZE, SIZE_PER_S = 32 << 20, 1e6
# Texts of one embedding call, and their characters and ids; a longer text is a portion of its own.
PORTION_TEXTS, PORTION_SIZE = 64, 1 << 16
# token_texts is not among them: it completes a request that was admitted already.
_GROUPS: dict[str, str] = dict.fromkeys(["tokenize", "detokenize", "render", "count"], "tokens")


class PendingCall:
    """A call whose reply is due."""

    def __init__(self, call: ModelCall, reply: asyncio.Future[Any]) -> None:
        self.id, self.call, self.reply, self.deaths = call.id, call, reply, 0
        self.group = _GROUPS.get(call.method, call.method)
        self.size = size(call.args) if self.group in MOST_CALLS else 0
        self.client = call.client

    def message(self, _: Writer) -> ModelCall:
        """Return the message for an engine that takes another's place."""
        return self.call

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.reply.done():
            self.reply.set_exception(error)


def check_pending(new: PendingCall, pending: Iterable[PendingCall], model: str) -> None:
    """Raise Overloaded where as many calls of its group are pending as may, or they hold as much as they may.

    Clients share both limits: one within its part is not refused because of the calls of others.
    """
    group = [call for call in pending if call.group == new.group]
    most = MOST_CALLS.get(new.group)
    if most is None or not group:
        return
    waiting = [call.size for call in group]
    own = [call.size for call in group if call.client == new.client]
    parts = len({new.client, *(call.client for call in group)})
    total = sum(waiting)
    fits_part = not own or (len(own) < most // parts and sum(own) + new.size <= MOST_CALLS_SIZE // parts)
    if (len(waiting) >= most or total + new.size > MOST_CALLS_SIZE) and not (parts > 1 and fits_part):
        what = "count tokens" if new.group == "tokens" else "be embedded"
        raise Overloaded(
            f"{len(waiting):,} requests with {total:,} characters wait to {what} by {model}; at most {most:,} "
            f"with {MOST_CALLS_SIZE:,} may",
            "ask again in a moment",
            total / SIZE_PER_S,
        )


def portions(job: EmbedJob) -> Iterator[EmbedJob]:
    """Deal a job's texts out into jobs of some tenths of a second."""
    first = size = 0
    for i, text in enumerate(job.texts):
        if i > first and (i - first == PORTION_TEXTS or size + len(text) > PORTION_SIZE):
            yield replace(job, texts=job.texts[first:i], first=job.first + first)
            first, size = i, 0
        size += len(text)
    yield replace(job, texts=job.texts[first:], first=job.first + first)


def joined(parts: list[Vectors]) -> Vectors:
    """Return the vectors of all portions as one."""
    return Vectors(
        b"".join(part.data for part in parts),
        parts[0].width,
        tuple(n for part in parts for n in part.tokens),
        tuple(i for part in parts for i in part.cut),
    )


class LoadWaiters:
    """Callers that wait until a model is loaded."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self) -> None:
        """Wait for `release`; raise the error given to `fail`."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def release(self) -> None:
        """Wake all waiting loads; each removes itself from the list."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def fail(self, error: Exception) -> None:
        """End all with an error."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_exception(error)
