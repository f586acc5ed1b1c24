"""One served model: its engine process, the process after that, and the streams that outlive both.

Knows streams, deaths and times; knows no file of a model, no memory and no web. An engine that dies is
started again; what it was answering goes on from the tokens it had sent, and so from the very next one, since
a token depends on those before it and on the seed alone. What keeps on killing engines ends alone: whatever was
there at two deaths comes back one after another, and the next death counts against the latest only.
Path: EngineModels.use -> EngineHandle.start -> EngineProcess.send(Submit); Frame -> EngineStream
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import fields, replace
from itertools import zip_longest
from typing import Any

import msgspec

from freehold.errors import (
    CapacityExceeded,
    EngineClosed,
    EngineLost,
    FreeholdError,
    Overloaded,
    UsageError,
)
from freehold.serving import EmbedJob, EngineStats, Job, ModelInfo, Vectors
from freehold.worker.client import STOP_S, EngineDied, EngineProcess
from freehold.worker.stream import EngineStream
from freehold.worker.tokenizer import EngineTokenizer
from freehold.worker.wire import Began, Cancel, Failed, Frame, ModelCall, Open, Piece, Submit, Writer, size

MAX_DEATHS = 3  # of engines under one job; the next one ends it
SUSPECT_DEATHS = 2  # after as many, a job joins the others only when the one before it has moved on
ALONE_S = 10.0  # others wait so long for all suspects; the prompt of one may take minutes to read
STEADY_S = 5.0  # an engine that lived longer did not die of what killed the one before
FIRST_WAIT_S, MOST_WAIT_S = (
    0.5,
    8.0,
)  # before the second start in a row; twice that before the next, and so on
PORTION_TEXTS, PORTION_SIZE = (
    64,
    1 << 16,
)  # texts of one call, and their characters and ids, but for a longer one
HUNG_S = 120.0  # without a sign while there is work. The longest step is a second; a swapping machine is slow
KEEP_ALIVE_S = 300.0
CLOSE_S = 3.0  # for an engine to end when the server does; weights it is packing are packed another time
# Calls of a model that wait for their replies. What only counts tokens holds its text until then, and two threads
# read a megabyte of it a second; a portion of texts to embed takes some tenths of a second of steps.
MOST_CALLS: dict[str, int] = {"tokens": 64, "embed": 256}
MOST_CALLS_SIZE, SIZE_PER_S = 32 << 20, 1e6
_GAUGES = {"running", "waiting", "blocks", "blocks_live", "blocks_cached", "expected_wait_s", "progress_at"}

Admit = Callable[["EngineHandle", CapacityExceeded | None], Awaitable[Open]]

log = logging.getLogger("freehold.worker")


# token_texts is not among them: it completes a request that was let in already.
_KINDS: dict[str, str] = dict.fromkeys(["tokenize", "detokenize", "render", "count"], "tokens")


class _Asked:
    """A call whose reply is due."""

    def __init__(self, call: ModelCall, reply: asyncio.Future[Any]) -> None:
        self.id, self.call, self.reply, self.deaths = call.id, call, reply, 0
        self.kind = _KINDS.get(call.method, call.method)
        self.size = size(call.args) if self.kind in MOST_CALLS else 0


class EngineHandle:
    """A model by name, loaded or not. What it is asked wakes it; `info` is of its latest load."""

    def __init__(
        self,
        name: str,
        admit: Admit,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        hung_s: float = HUNG_S,
    ) -> None:
        """`admit` makes room for the model and says what to load; its errors go to whoever asked.

        It is asked again with the error if the engine found that the room does not do.
        """
        self.name = name
        self._admit, self._hung_s = admit, hung_s
        self._keep_s = self._default_keep_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._writer = Writer()
        self._life: asyncio.Task[None] | None = None
        self._engine: EngineProcess | None = None
        self._loads: list[asyncio.Future[None]] = []
        self._streams: dict[int, EngineStream] = {}
        self._asked: dict[int, _Asked] = {}
        self._ids = 0
        self._queue: deque[EngineStream | _Asked] = deque()  # held back by a trial
        self._trial: EngineStream | _Asked | None = None
        self._tried_at = 0.0
        self._alone: asyncio.TimerHandle | None = None  # while nobody is let in beside a trial
        self._up = self._closed = False
        self._info: ModelInfo | None = None
        self._stats, self._before = EngineStats(), EngineStats()
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._up_at = math.inf
        self._busy_at = self._loop.time()
        self.expires_at: float | None = None  # time.time() of its unloading; None: while busy, or never
        self.used_at = self._loop.time()
        self.restarts = self.slow_readers = 0
        self.progress = (0, 0)  # bytes loaded, bytes in all

    # --- state -------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> EngineTokenizer:
        """The model's tokenizer and chat template."""
        return EngineTokenizer(self._call)

    @property
    def info(self) -> ModelInfo:
        """What the model is, as it was loaded last. Raises EngineClosed before the first time."""
        if self._info is None:
            raise EngineClosed(f"{self.name} was never loaded")
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The engine's latest numbers; counters go on where those of the engines before it stopped."""
        names = (f.name for f in fields(EngineStats) if f.name not in _GAUGES)
        sums = {n: _sum(getattr(self._stats, n), getattr(self._before, n)) for n in names}
        return replace(self._stats, **sums)

    @property
    def loaded(self) -> bool:
        """Whether an engine process has the model and answers."""
        return self._up

    @property
    def was_loaded(self) -> bool:
        """Whether `info` is there."""
        return self._info is not None

    @property
    def awake(self) -> bool:
        """Whether it is loaded, being loaded, or about to be loaded again."""
        return self._life is not None and not self.leaving

    @property
    def leaving(self) -> bool:
        """Whether it is being unloaded: its process may still hold memory."""
        return self._life is not None and self._life.cancelling() > 0

    @property
    def idle(self) -> bool:
        """Whether nothing is asked of it."""
        return not (self._streams or self._asked or self._loads)

    @property
    def in_flight(self) -> int:
        """Jobs that are not over."""
        return len(self._streams)

    @property
    def pid(self) -> int:
        """The engine process's number; 0 while there is none."""
        return self._engine.pid if self._engine else 0

    # --- what is asked of it -----------------------------------------------------------------------

    async def load(self, keep_alive: float | None = None) -> None:
        """Load the model if it is not; those who wait for one load share it."""
        self._use(keep_alive)
        if not self._up:
            waiting: asyncio.Future[None] = self._loop.create_future()
            self._loads.append(waiting)
            self._wake()
            try:
                await waiting
            finally:
                if waiting in self._loads:
                    self._loads.remove(waiting)
        self._rest()

    async def start(self, job: Job, keep_alive: float | None = None) -> EngineStream:
        """Have a job answered; returns when the engine has taken it in. Raises what it was refused with.

        `keep_alive`: seconds the model stays loaded after its last job; 0 not at all, negative for good.
        """
        self._use(keep_alive)
        self._ids += 1
        stream = self._streams[self._ids] = EngineStream(self._ids, job, self._ended)
        try:
            self._send(stream, Submit(stream.id, self._writer.raw(job)))
            await stream.started()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def count(self, job: Job) -> int:
        """Count the tokens of a job's prompt, whether or not there is room for them."""
        return await self._call("count", job)

    async def change(self, method: str, *args: str) -> None:
        """Have the engine add or remove an adapter; `info` lists what there is then."""
        self._info = msgspec.convert(await self._call(method, *args), ModelInfo)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        """Turn texts into vectors of unit length, a portion at a time: who goes away stops the rest.

        `computed` is called with the tokens of each portion, once they are computed.
        """
        parts: list[Vectors] = []
        cut: list[int] = []
        for portion in _portions(job):
            told = await self._call("embed", portion, keep_alive=keep_alive)
            parts.append(msgspec.convert(told, Vectors))
            if computed is not None:
                computed(sum(parts[-1].tokens))
            cut += [portion.first - job.first + i for i in parts[-1].cut]
        return Vectors(
            b"".join(part.data for part in parts),
            parts[0].width,
            tuple(n for part in parts for n in part.tokens),
            tuple(cut),
        )

    async def _call(self, method: str, *args: Any, keep_alive: float | None = None) -> Any:
        self._use(keep_alive)
        self._ids += 1
        asked = _Asked(ModelCall(self._ids, method, list(args)), self._loop.create_future())
        self._check_calls(asked)
        self._asked[self._ids] = asked
        try:
            self._send(asked, asked.call)
            return await asked.reply
        finally:
            del self._asked[asked.id]
            if asked.reply.cancelled() and self._up and self._engine is not None:
                self._engine.send(Cancel(asked.id))
            self._acquit(asked)
            self._rest()

    def _check_calls(self, new: _Asked) -> None:
        """Raise Overloaded where as many calls of its kind wait as may, or they hold as much as they may."""
        waiting = [asked.size for asked in self._asked.values() if asked.kind == new.kind]
        most = MOST_CALLS.get(new.kind)
        if most is None or not waiting:
            return
        total = sum(waiting)
        if len(waiting) >= most or total + new.size > MOST_CALLS_SIZE:
            what = "count tokens" if new.kind == "tokens" else "be embedded"
            raise Overloaded(
                f"{len(waiting):,} requests with {total:,} characters wait to {what} by {self.name}; at most {most:,} "
                f"with {MOST_CALLS_SIZE:,} may",
                "ask again in a moment",
                total / SIZE_PER_S,
            )

    def _send(self, work: EngineStream | _Asked, message: Submit | ModelCall) -> None:
        if not self._up or self._engine is None:
            self._wake()  # what waits is sent when the engine is ready
        elif self._alone is not None:
            self._queue.append(work)
        else:
            self._engine.send(message)

    def _ended(self, stream: EngineStream, working: bool) -> None:
        self._streams.pop(stream.id, None)
        self.slow_readers += stream.fell_behind
        if working and self._up and self._engine is not None:
            self._engine.send(Cancel(stream.id))
        self._acquit(stream)
        self._rest()

    # --- frames ------------------------------------------------------------------------------------

    def _frame(self, frame: Frame) -> None:
        for event in frame.events:
            stream = self._streams.get(event.id)
            if stream is None:
                self._replied(event)
            elif type(event) is Piece:
                stream.gain(event.index, event.chunk)
                if stream is self._trial:
                    self._moved(stream)
            elif type(event) is Began:
                stream.began(event.begin)
            elif type(event) is Failed:
                stream.fail(event.error)
        if frame.stats is not None:
            self._stats = frame.stats

    def _replied(self, event: Any) -> None:
        asked = self._asked.get(event.id)
        if asked is None or asked.reply.done():
            return
        if isinstance(event, Failed):
            asked.reply.set_exception(event.error)
        else:
            asked.reply.set_result(event.value)

    # --- lives and deaths --------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._life is None:
            self._life = self._loop.create_task(self._live())
            self._life.add_done_callback(self._lived)

    def _lived(self, _: asyncio.Task[None]) -> None:
        """Note the end of a life, be it that it was cancelled before its first turn."""
        self._up, self._engine, self._life = False, None, None
        self._sum_up()
        if not self.idle and not self._closed:  # asked in the moment of going
            self._wake()

    async def _live(self) -> None:
        """Start the engine, and another when it dies, until it is unloaded or cannot be loaded."""
        deaths = 0
        try:
            while True:
                self._up_at = math.inf
                how = await self._one_life()
                deaths = 1 if self._loop.time() - self._up_at > STEADY_S else deaths + 1
                if not self._mourn(how, deaths):
                    return
                await asyncio.sleep(min(FIRST_WAIT_S * 2 ** (deaths - 2), MOST_WAIT_S) if deaths > 1 else 0)
        except FreeholdError as e:
            log.warning("%s cannot be loaded: %s", self.name, e.message)
            self._give_up(e)
        except Exception as e:
            log.exception("%s cannot be loaded", self.name)
            self._give_up(FreeholdError(f"internal error: {type(e).__name__}", "see the server's log"))

    async def _one_life(self, refused: CapacityExceeded | None = None) -> str:
        """Load and serve until the process is gone; return how it went."""
        asked = await self._admit(self, refused)
        self._engine = engine = EngineProcess(self._frame, self._loading)
        watch = self._loop.create_task(self._watch(engine))
        try:
            self._info = await engine.start(asked)
            self._up, self._up_at = True, self._loop.time()
            self._resume(engine)
            return await asyncio.shield(engine.gone)
        except EngineDied as e:
            return str(e)
        except CapacityExceeded as e:
            refused = e  # `admit` makes more room, or raises it
        finally:
            self._up = False
            watch.cancel()  # and not awaited: that would swallow the cancellation of an unload in the same turn
            await engine.stop(
                CLOSE_S if self._closed else STOP_S
            )  # a life ends with its process, so that the next finds its memory free
        return await self._one_life(refused)

    def _loading(self, done: int, total: int) -> None:
        self.progress = (done, total)

    def _resume(self, engine: EngineProcess) -> None:
        """Give the new engine all that waits, and what the one before was answering."""
        self._queue = deque(
            sorted([*self._streams.values(), *self._asked.values()], key=lambda work: (-work.deaths, work.id))
        )
        self._next()
        if self._trial is not None:
            self._alone = self._loop.call_later(ALONE_S, self._join)
        for waiting in self._loads:
            if not waiting.done():
                waiting.set_result(None)
        self._rest()

    # --- who it was --------------------------------------------------------------------------------

    def _next(self) -> None:
        """Send the next suspect, or all that waits once there is none."""
        self._trial = None
        while self._queue and self._trial is None:
            work = self._queue.popleft()
            if work.id in self._streams or work.id in self._asked:
                if work.deaths >= SUSPECT_DEATHS:
                    self._trial, self._tried_at = work, self._loop.time()
                self._submit(work)
        if self._trial is None:
            self._end_trials()

    def _join(self) -> None:
        """Let in all but suspects beside trials that last: a death still counts against the one on trial alone.

        Another suspect waits on: it may be the one that kills, and then the wrong one would be blamed.
        """
        self._alone = None
        waiting, self._queue = self._queue, deque()
        for work in waiting:
            if work.deaths >= SUSPECT_DEATHS:
                self._queue.append(work)
            elif work.id in self._streams or work.id in self._asked:
                self._submit(work)

    def _end_trials(self) -> None:
        """Forget who is on trial and who waits for that."""
        self._queue.clear()
        self._trial = None
        if self._alone is not None:
            self._alone.cancel()
        self._alone = None

    def _submit(self, work: EngineStream | _Asked) -> None:
        assert self._engine is not None, "sent while there was no engine"
        try:
            if isinstance(work, EngineStream):
                self._engine.send(Submit(work.id, self._writer.raw(work.job_to_go_on)))
            else:
                self._engine.send(work.call)
        except UsageError as e:
            self._fail(work, e)

    def _moved(self, stream: EngineStream) -> None:
        """Let the next one in behind a suspect that made a token; with one death left it proves itself longer."""
        if stream.deaths < MAX_DEATHS or self._loop.time() - self._tried_at > STEADY_S:
            self._next()

    def _acquit(self, work: EngineStream | _Asked) -> None:
        if work is self._trial:
            self._next()

    def _fail(self, work: EngineStream | _Asked, error: FreeholdError) -> None:
        if isinstance(work, EngineStream):
            work.fail(error)
        elif not work.reply.done():
            work.reply.set_exception(error)

    def _blamed(self) -> list[EngineStream | _Asked]:
        """Return whom a death counts against: the one on trial, else all. An engine that never came up tried nobody."""
        trial = self._trial
        self._end_trials()
        if trial is not None:
            log.warning("job %d of %s was on trial", trial.id, self.name)
            return [trial]
        return [*self._streams.values(), *self._asked.values()]

    def _mourn(self, how: str, deaths: int) -> bool:
        """Count a death against all it concerned; tell whether the engine shall be started again."""
        log.warning("the engine of %s died: %s", self.name, how)
        self._sum_up()
        for work in self._blamed():
            work.deaths += 1
            if work.deaths > MAX_DEATHS:
                self._fail(work, self._lost(how))
        if deaths > MAX_DEATHS:
            self._end_loads(self._lost(how))
        if deaths > MAX_DEATHS and self.idle:
            return False  # nobody waits; the next request tries again
        self.restarts += 1
        return True

    def _sum_up(self) -> None:
        """Keep what an engine that is gone has counted: the next one begins at nothing, and no sum may shrink."""
        self._before, self._stats = self.stats, EngineStats(progress_at=self._stats.progress_at)

    def _lost(self, how: str) -> EngineLost:
        return EngineLost(
            f"the engine of {self.name} died, and so did {MAX_DEATHS} that took its place: {how}",
            "other models are not concerned; the server's log tells more",
        )

    def _give_up(self, error: FreeholdError) -> None:
        """End everything that waits, with `error`."""
        self._end_trials()
        for work in [*self._streams.values(), *self._asked.values()]:
            self._fail(work, error)
        self._end_loads(error)

    def _end_loads(self, error: FreeholdError) -> None:
        loads, self._loads = self._loads, []
        for waiting in loads:
            if not waiting.done():
                waiting.set_exception(error)

    async def _watch(self, engine: EngineProcess) -> None:
        """Kill an engine that gives no sign while something waits for it."""
        while True:
            await asyncio.sleep(self._hung_s / 8)
            quiet = self._loop.time() - max(engine.heard, self._busy_at)
            if quiet > self._hung_s and not (self._up and self.idle):
                engine.kill(f"it made no step for {quiet:.0f} s while work waited, and was killed")

    # --- rest --------------------------------------------------------------------------------------

    def _use(self, keep_alive: float | None) -> None:
        if self._closed:
            raise EngineClosed("the server is shutting down", "ask again when it is back")
        if self.idle:
            self._busy_at = self._loop.time()
        self.used_at = self._loop.time()
        self._keep_s = self._default_keep_s if keep_alive is None else keep_alive
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.expires_at = None

    def _rest(self) -> None:
        """Let the time run after which an idle model is unloaded."""
        if not self.idle or not self._up or self._closed:
            return
        self.used_at = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.expires_at = None
        if 0 <= self._keep_s < math.inf:
            self.expires_at = time.time() + self._keep_s
            self._timer = self._loop.call_later(self._keep_s, self._expire)

    def _expire(self) -> None:
        self._leaving = self._loop.create_task(self._leave())

    async def _leave(self) -> None:
        if self.idle:  # nobody came between the timer and this task
            await self.unload()

    async def unload(self) -> None:
        """Stop the engine process and wait for its end. Jobs under way end with EngineClosed."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.expires_at = None
        self._up = False
        self._give_up(EngineClosed(f"{self.name} is being unloaded", "ask again; it is loaded on demand"))
        if self._life is not None and not self.leaving:
            self._life.cancel()
        await self.left()

    async def left(self) -> None:
        """Wait until a model that is being unloaded has left its memory."""
        if self._life is not None and self.leaving:
            await asyncio.wait([self._life])

    async def close(self, drain_s: float = 0.0) -> None:
        """Take nothing more in, let what runs end for up to `drain_s`, and unload."""
        self._closed = True
        until = self._loop.time() + drain_s
        while not self.idle and self._loop.time() < until:
            await asyncio.sleep(0.02)
        await self.unload()


def _sum(now: Any, before: Any) -> Any:
    """Add two counters, or two rows of them."""
    if isinstance(now, tuple):
        return tuple(map(sum, zip_longest(now, before, fillvalue=0)))
    return now + before


def _portions(job: EmbedJob) -> Iterator[EmbedJob]:
    """Deal a job's texts out into jobs of some tenths of a second."""
    first = size = 0
    for i, text in enumerate(job.texts):
        if i > first and (i - first == PORTION_TEXTS or size + len(text) > PORTION_SIZE):
            yield replace(job, texts=job.texts[first:i], first=job.first + first)
            first, size = i, 0
        size += len(text)
    yield replace(job, texts=job.texts[first:], first=job.first + first)
