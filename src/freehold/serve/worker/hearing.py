"""A recording on the server's side: sent to an engine process, pulled part by part, begun again after a death.

Knows calls with one reply, and which recordings are open at a time; knows no socket and no form of sound. What an
engine has said stays with the server: a new process hears the chunks that are left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Self

import msgspec

from freehold.base.errors import EngineLost, Overloaded
from freehold.base.serving import SpeechFacts, SpeechJob, SpeechPart, SpeechSource
from freehold.serve.worker.wire import SOUND_PIECE, HearBegin, HearBytes, HearReply

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
                f"{total} recordings wait to be heard by {self._model}; at most {self._most_waiting} may",
                "ask again in a moment",
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
