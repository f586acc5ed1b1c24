"""Streams on the server's side: a job's, with the token log that outlives an engine, a recording's, and single replies.

Knows chunks, tokens and limits; knows no socket, no process and no form of sound. A recording is sent to an engine
process, pulled part by part, and begun again after a death. What an engine has said stays with the server: a new
process hears the chunks that are left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

import msgspec

from freehold.base.errors import DeadlineExceeded, EngineLost, FreeholdError, Overloaded, SlowReader
from freehold.base.serving import (
    Begin,
    EmbedJob,
    Job,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
    SpeechSource,
    Vectors,
)
from freehold.base.types import Chunk
from freehold.serve.worker.wire import (
    SOUND_PIECE,
    HearBegin,
    HearBytes,
    HearReply,
    ModelCall,
    Submit,
    Writer,
    size,
)

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
                    "try again: the new file then answers",
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
            "try again in a moment",
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


# --- recordings ------------------------------------------------------------------------------------

OPEN = 4  # recordings of a model that its engine has at a time
WAITING = 64  # that wait for one of these, of all clients
FIRST_S = 10.0  # that a recording takes, as long as none has ended
MAX_LOST = 3  # engines that died with a recording; the next one ends it


class EngineHearing:
    """Implements SpeechStream over the calls of one engine handle."""

    def __init__(
        self,
        number: int,
        job: SpeechJob,
        recording: SpeechSource,
        call: Callable[..., Awaitable[Any]],
        ended: Callable[[int], None],
    ) -> None:
        """`number`: of the recording; `call`: calls a method in the engine process; `ended` is called once."""
        self._number, self._job, self._recording = number, job, recording
        self._call, self._ended = call, ended
        self._facts: SpeechFacts | None = None
        self._chunks = 0  # whose texts are here
        self._lost = 0  # engines that died since the latest of them came
        self._over = False

    @property
    def facts(self) -> SpeechFacts:
        """What is known of it once `started` returned."""
        assert self._facts is not None, "facts were used before started() returned"
        return self._facts

    async def started(self) -> None:
        """Send the recording and wait until it is opened. Raises what it was refused with."""
        await self._opened()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechPart:
        """Have the next chunks transcribed, and return their texts."""
        if self._over:
            raise StopAsyncIteration
        part = (await self._reply()).part
        if part is None:
            await self.aclose()
            raise StopAsyncIteration
        self._chunks, self._lost = self._chunks + len(part.starts), 0
        self._job = replace(self._job, language=self._job.language or part.language)
        return part

    async def aclose(self) -> None:
        """Forget the recording; safe to call twice. A call in progress was cancelled by its caller."""
        if not self._over:
            self._over = True
            self._ended(self._number)

    async def _reply(self) -> HearReply:
        """Pull once; where another process has taken the engine's place, from that, once it has the recording."""
        while (reply := await self._pull()) is None:
            self._lost += 1
            await self._opened()
        return reply

    async def _opened(self) -> None:
        """Have the engine open the recording, and another one if it dies meanwhile."""
        while self._lost <= MAX_LOST:
            reply = await self._pull() if await self._send() else None
            if reply is not None and reply.facts is not None:
                self._facts = self._facts or reply.facts
                return
            self._lost += 1
        raise EngineLost(
            f"{self._lost} engines died one after another with this recording",
            "other recordings are not concerned; the server's log tells more",
        )

    async def _pull(self) -> HearReply | None:
        reply = await self._call("hear_next", self._number, client=self._job.client)
        return None if reply is None else msgspec.convert(reply, HearReply)

    async def _send(self) -> bool:
        """Send the whole recording; False where the process that had its beginning is gone."""
        size, at, client = self._recording.size, 0, self._job.client
        await self._call("hear_begin", HearBegin(self._number, size, self._job, self._chunks), client=client)
        while at < size:
            data = await self._recording.read(at, min(SOUND_PIECE, size - at))
            if not data:
                raise EngineLost("the recording was cut short on the server's disk", "send it again")
            if await self._call("hear_bytes", HearBytes(self._number, at, data), client=client) is None:
                return False
            at += len(data)
        return True


# --- which recordings are open at a time ---------------------------------------------------------------
# An open one holds its samples in the engine, 0.9 GB for four hours; one that waits is on the server's disk alone.


class RecordingTurns:
    """Lets `most` recordings of a model be open. The next one is of the client with the fewest, then the oldest.

    One client has all but one at most: else the short recordings of others would wait for its long ones.
    """

    def __init__(self, model: str, most: int = OPEN, waiting: int = WAITING) -> None:
        self._model, self._most, self._most_waiting = model, most, waiting
        self._open: Counter[str] = Counter()
        self._waiting: dict[
            str, deque[asyncio.Future[None]]
        ] = {}  # the client whose turn was longest ago first
        self._mean_s = FIRST_S

    async def mine(self, client: str) -> RecordingTurn:
        """Wait for a turn. Raises Overloaded where as many wait as may, a client's part of them its own."""
        if self._may(client):  # none that waits may: each end lets all begin that may
            return self._begun(client)
        self._check(client)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # its turn came in the same moment
                self._ended(client)
            else:
                self._drop(client, waiter)
            raise
        return RecordingTurn(self, client)

    def _check(self, client: str) -> None:
        counts = {each: len(waiters) for each, waiters in self._waiting.items()}
        total, parts = sum(counts.values()), len(counts.keys() | {client})
        own = counts.get(client, 0)
        if total >= self._most_waiting and (own or parts == 1) and own >= self._most_waiting // parts:
            raise Overloaded(
                f"{total} recordings are waiting for {self._model}; the limit is {self._most_waiting}",
                "try again in a moment",
                self._mean_s * (total + 1) / self._most,
            )

    def _may(self, client: str) -> bool:
        """Tell whether one more recording of a client may be open."""
        return self._open.total() < self._most and self._open[client] < max(self._most - 1, 1)

    def _begun(self, client: str) -> RecordingTurn:
        self._open[client] += 1
        return RecordingTurn(self, client)

    def end(self, client: str, seconds: float) -> None:
        """Note that a recording ended `seconds` after it began, and let the next one begin."""
        self._mean_s += (seconds - self._mean_s) / 4
        self._ended(client)

    def _ended(self, client: str) -> None:
        self._open[client] -= 1
        self._open += Counter()  # drops those at zero
        while ready := [each for each in self._waiting if self._may(each)]:
            chosen = min(ready, key=self._open.__getitem__)
            waiters = self._waiting.pop(chosen)
            waiter = waiters.popleft()
            if waiters:
                self._waiting[chosen] = waiters  # behind the others
            if not waiter.done():
                self._open[chosen] += 1
                waiter.set_result(None)

    def _drop(self, client: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiting.get(client, deque())
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(client, None)


class RecordingTurn:
    """One recording's; `end` gives it to the next."""

    def __init__(self, turns: RecordingTurns, client: str) -> None:
        self._turns, self._client = turns, client
        self._began, self._over = time.monotonic(), False

    def end(self) -> None:
        """Give it back; safe to call twice."""
        if not self._over:
            self._over = True
            self._turns.end(self._client, time.monotonic() - self._began)
