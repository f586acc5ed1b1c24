"""One model served by an engine process, with the streams that survive a restart of the process.

Restarts a crashed engine process and resumes its streams from the tokens already sent. Sampling depends only on seed
and position, so the continuation is identical. The quarantine finds a request that crashes its engines.
Knows streams, deaths and times; knows no model file, no memory limit and no protocol.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import zip_longest
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from freehold.base.errors import CapacityExceeded, EngineClosed, EngineLost, FreeholdError, UsageError
from freehold.base.serving import (
    EmbedJob,
    EngineStats,
    Job,
    ModelInfo,
    PastDeath,
    SpeechJob,
    SpeechSource,
    Vectors,
    reads_text,
)
from freehold.base.types import Message, Turn
from freehold.serve.worker.client import (
    HUNG_S,
    KEEP_ALIVE_S,
    MAX_WAITING,
    STOP_S,
    EngineDied,
    EngineProcess,
    KeepAlive,
)
from freehold.serve.worker.stream import (
    EngineHearing,
    EngineStream,
    LoadWaiters,
    PendingCall,
    RecordingTurn,
    RecordingTurns,
    check_pending,
    joined,
    portions,
)
from freehold.serve.worker.wire import (
    Began,
    Cancel,
    Failed,
    Frame,
    ModelCall,
    Open,
    Piece,
    Prefilled,
    Submit,
    Writer,
    encoded,
    is_long,
    packed,
)

# Quarantine for requests that may have ended their engine: they restart alone, one after another.
# An engine's death counts against every request that was running. A request that saw SUSPECT_DEATHS deaths is
# a suspect: the next engine runs the suspects first, each of them once the one before has produced a token.
# Other requests wait for the suspects, at most ALONE_S. A death while a suspect is on trial counts against
# that suspect only.
MAX_DEATHS = 3  # of engines under one request; the next one ends it
SUSPECT_DEATHS = 2  # from this many deaths a request restarts alone
ALONE_S = 10.0  # others wait at most this long for the suspects, whose prefill may take minutes
STEADY_S = 5.0  # an engine that lived longer did not die of what ended the one before


class Restartable(Protocol):
    """A request that a new engine can take over."""

    id: int
    deaths: int  # engines that died with it


R = TypeVar("R", bound=Restartable)


class Quarantine(Generic[R]):
    """Requests of one model that wait to be submitted to a new engine."""

    def __init__(self, submit: Callable[[R], None], is_live: Callable[[R], bool]) -> None:
        """`submit` sends a request to the engine; `is_live` is false for one that has ended meanwhile."""
        self._submit, self._is_live = submit, is_live
        self._loop = asyncio.get_running_loop()
        self.queue: deque[R] = deque()
        self.suspect: R | None = None
        self._since = 0.0  # the start of the suspect's trial
        self._alone: asyncio.TimerHandle | None = None  # while a suspect shares the engine with no request

    @property
    def hold_others(self) -> bool:
        """Whether new requests must wait until a trial ends."""
        return self._alone is not None

    def begin(self, requests: Iterable[R]) -> None:
        """Submit all requests to a new engine: suspects first, one after another."""
        self.queue = deque(sorted(requests, key=lambda request: (-request.deaths, request.id)))
        self._next()
        if self.suspect is not None:
            self._alone = self._loop.call_later(ALONE_S, self._admit_others)

    def progressed(self, request: R) -> None:
        """Submit the next suspect once this one has produced a token; its last trial lasts at least STEADY_S."""
        if request is self.suspect and (
            request.deaths < MAX_DEATHS or self._loop.time() - self._since > STEADY_S
        ):
            self._next()

    def ended(self, request: R) -> None:
        """Note that a request ended, which ends its trial."""
        if request is self.suspect:
            self._next()

    def blame(self, live: Iterable[R]) -> list[R]:
        """Return the requests that a death counts against: the suspect on trial, else all of `live`."""
        suspect = self.suspect
        self.clear()
        return list(live) if suspect is None else [suspect]

    def clear(self) -> None:
        """Forget the suspect and the requests that wait for its trial."""
        self.queue.clear()
        self.suspect = None
        if self._alone is not None:
            self._alone.cancel()
        self._alone = None

    def _next(self) -> None:
        """Submit the next suspect, or all waiting requests if no suspect is left."""
        self.suspect = None
        while self.queue and self.suspect is None:
            request = self.queue.popleft()
            if self._is_live(request):
                if request.deaths >= SUSPECT_DEATHS:
                    self.suspect, self._since = request, self._loop.time()
                self._submit(request)
        if self.suspect is None:
            self.clear()

    def _admit_others(self) -> None:
        """Submit all but suspects beside a trial that lasts: a death still counts against the one on trial alone.

        Other suspects wait on: one of them may end the engine, and the one on trial would be blamed for it.
        """
        self._alone = None
        waiting, self.queue = self.queue, deque()
        for request in waiting:
            if request.deaths >= SUSPECT_DEATHS:
                self.queue.append(request)
            elif self._is_live(request):
                self._submit(request)


# Before the second start in a row, twice that before the next, and so on; and at most.
FIRST_WAIT_S, MOST_WAIT_S = 0.5, 8.0
KEPT_DEATHS = 8
CLOSE_S = 3.0  # for an engine to end when the server does; weights it is packing are packed another time

Request = EngineStream | PendingCall
Admit = Callable[["EngineHandle", CapacityExceeded | None], Awaitable[Open]]

log = logging.getLogger("freehold.serve.worker")


class EngineHandle:
    """A model by name, loaded or not. A request loads it; `info` is of its latest load."""

    def __init__(
        self, name: str, admit: Admit, *, keep_alive_s: float = KEEP_ALIVE_S, hung_s: float = HUNG_S
    ) -> None:
        """`admit` makes room for the model and returns what to load; its errors end the waiting requests.

        It is called again with the error if the engine found the room too small.
        """
        self.name = name
        self._admit, self._hung_s = admit, hung_s
        self._loop = asyncio.get_running_loop()
        self._writer = Writer()
        self._life: asyncio.Task[None] | None = None  # from the first start to the unloading
        self._engine: EngineProcess | None = None
        self._loads = LoadWaiters()
        self._streams: dict[int, EngineStream] = {}
        self._calls: dict[int, PendingCall] = {}
        self._hearings: dict[
            int, RecordingTurn | None
        ] = {}  # recordings that have begun, or wait for their turn
        self._turns = RecordingTurns(name)
        self._ids = self._packing = 0
        self._quarantine = Quarantine[Request](self._submit, self._is_live)
        self._submitting: set[asyncio.Task[None]] = set()  # long jobs that are being encoded for a new engine
        self._up = self._closed = False
        self._info: ModelInfo | None = None
        self._counters = Counters()
        self.keep_alive = KeepAlive(keep_alive_s, self._expire)
        self._leaving: asyncio.Task[None] | None = None
        self._retiring = False  # until it is unloaded
        self._up_at = math.inf
        self._busy_at = self._loop.time()
        self.restarts = self.slow_readers = 0
        self.deaths: deque[PastDeath] = deque(maxlen=KEPT_DEATHS)
        self.progress = (0, 0)  # bytes loaded, bytes in all

    # --- state -------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> EngineTokenizer:
        """The model's tokenizer and chat template."""
        return EngineTokenizer(self.call)

    @property
    def info(self) -> ModelInfo:
        """What the model is, as it was loaded last. Raises EngineClosed before the first time."""
        if self._info is None:
            raise EngineClosed(f"{self.name} was never loaded")
        return self._info

    @property
    def stats(self) -> EngineStats:
        """The engine's latest numbers; counters include those of the engines before it."""
        return self._counters.total

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
        """Whether no request is packed, waits or runs, and no recording is open."""
        return not (self._owes or self._hearings)

    @property
    def _owes(self) -> bool:
        """Whether a request waits for the engine; an open recording whose reader is slow does not."""
        return bool(self._streams or self._calls or self._loads or self._packing)

    @property
    def in_flight(self) -> int:
        """Jobs that are not over, and recordings that are being opened or transcribed now."""
        return len(self._streams) + sum(call.group == "hear_next" for call in self._calls.values())

    @property
    def pid(self) -> int:
        """The engine process's number; 0 while there is none."""
        return self._engine.pid if self._engine else 0

    # --- requests ----------------------------------------------------------------------------------

    async def load(self, keep_alive: float | None = None) -> None:
        """Load the model if it is not; concurrent callers share one load."""
        self._used(keep_alive)
        if not self._up:
            self._ensure_running()
            await self._loads.wait()
        self._rest()

    async def start(self, job: Job, keep_alive: float | None = None) -> EngineStream:
        """Submit a job; returns when the engine has accepted it. Raises what it was refused with, and Overloaded.

        `keep_alive`: seconds the model stays loaded after its last job; 0 not at all, negative for good.
        """
        whole = await self._pack(job, keep_alive) if is_long(job) else encoded(job)
        self._used(keep_alive)
        self._ids += 1
        stream = self._streams[self._ids] = EngineStream(self._ids, job, self._ended)
        try:
            self._send(stream, Submit(stream.id, whole))
            await stream.started()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def count(self, job: Job) -> int:
        """Count the tokens of a job's prompt, whether or not there is room for them."""
        return await self.call("count", await self._pack(job), client=job.client or job.tenant)

    async def change(self, method: str, *args: str) -> None:
        """Have the engine add or remove an adapter; `info` lists those it has then."""
        self._info = msgspec.convert(await self.call(method, *args), ModelInfo)

    async def embed(
        self, job: EmbedJob, keep_alive: float | None = None, computed: Callable[[int], None] | None = None
    ) -> Vectors:
        """Return unit vectors of texts, a portion at a time: cancelling the call stops the rest.

        `computed` is called with the tokens of each portion, once they are computed.
        """
        parts: list[Vectors] = []
        for portion in portions(job):
            client = job.client or job.tenant
            packed_portion = await self._pack(portion, keep_alive)
            reply = await self.call("embed", packed_portion, keep_alive=keep_alive, client=client)
            part = msgspec.convert(reply, Vectors)
            parts.append(replace(part, cut=tuple(portion.first - job.first + i for i in part.cut)))
            if computed is not None:
                computed(sum(part.tokens))
        return joined(parts)

    async def hear(
        self, job: SpeechJob, recording: SpeechSource, keep_alive: float | None = None
    ) -> EngineHearing:
        """Have a recording opened, once it is its turn; the engine transcribes as far as the result is read.

        Raises what it was refused with, and Overloaded.
        """
        await self.load(keep_alive)
        if not self.info.can_hear:
            raise reads_text(self.name)
        self._ids += 1
        number = self._ids
        self._hearings[number] = None
        call = partial(self.call, keep_alive=keep_alive)
        hearing = EngineHearing(number, job, recording, call, self._heard)
        try:
            self._hearings[number] = await self._turns.mine(job.client or job.tenant)
            await hearing.started()
        except BaseException:
            await hearing.aclose()
            raise
        return hearing

    def _heard(self, number: int) -> None:
        """Have the engine forget a recording, and let the next one begin."""
        turn = self._hearings.pop(number, None)
        if turn is not None:
            turn.end()
            if self._up and self._engine is not None:
                self._ids += 1
                self._engine.send(ModelCall(self._ids, "hear_end", [number]))
        self._rest()

    async def call(self, method: str, *args: Any, keep_alive: float | None = None, client: str = "") -> Any:
        """Call a method of the model in the engine process and return its value; cancelled, it stops there too.

        `client`: whose share of its threads, and of the calls that may wait, it uses.
        """
        self._used(keep_alive)
        self._ids += 1
        pending = PendingCall(ModelCall(self._ids, method, list(args), client), self._loop.create_future())
        check_pending(pending, self._calls.values(), self.name)
        self._calls[pending.id] = pending
        try:
            self._send(pending, pending.call)
            return await pending.reply
        finally:
            del self._calls[pending.id]
            if pending.reply.cancelled() and self._up and self._engine is not None:
                self._engine.send(Cancel(pending.id))
            self._quarantine.ended(pending)
            self._rest()

    async def _pack(self, job: Job | EmbedJob, keep_alive: float | None = None) -> msgspec.Raw:
        """Encode a job for the engine; meanwhile the model is not unloaded, neither for room nor by its timer."""
        self._used(keep_alive)
        self._packing += 1
        try:
            return await packed(job)
        finally:
            self._packing -= 1
            self._rest()

    def _send(self, request: Request, message: Submit | ModelCall) -> None:
        if not self._up or self._engine is None:
            self._ensure_running()  # pending requests are sent when the engine is ready
        elif self._quarantine.hold_others:
            self._quarantine.queue.append(request)
        else:
            self._engine.send(message, MAX_WAITING)

    def _submit(self, request: Request) -> None:
        """Send a request to an engine that takes another's place; a long job once it is encoded beside the loop."""
        assert self._engine is not None, "sent while there was no engine"
        if isinstance(request, EngineStream) and is_long(request.job):
            task = self._loop.create_task(self._submit_later(request, self._engine))
            self._submitting.add(task)
            task.add_done_callback(self._submitting.discard)
            return
        try:
            self._engine.send(request.message(self._writer))
        except UsageError as e:
            request.fail(e)

    async def _submit_later(self, request: EngineStream, engine: EngineProcess) -> None:
        try:
            message = Submit(request.id, await packed(request.job_to_go_on))
            if self._engine is engine and self._up and self._is_live(request):
                engine.send(message)
        except UsageError as e:
            request.fail(e)

    def _is_live(self, request: Request) -> bool:
        return request.id in self._streams or request.id in self._calls

    def _ended(self, stream: EngineStream, working: bool) -> None:
        self._streams.pop(stream.id, None)
        self.slow_readers += stream.fell_behind
        if working and self._up and self._engine is not None:
            self._engine.send(Cancel(stream.id))
        self._quarantine.ended(stream)
        self._rest()

    # --- frames ------------------------------------------------------------------------------------

    def _frame(self, frame: Frame) -> None:
        for event in frame.events:
            stream = self._streams.get(event.id)
            if stream is None:
                self._replied(event)
            elif type(event) is Piece:
                stream.gain(event.index, event.chunk)
                if stream is self._quarantine.suspect:
                    self._quarantine.progressed(stream)
            elif type(event) is Prefilled:
                stream.prefill = event.done, event.total
            elif type(event) is Began:
                stream.began(event.begin)
            elif type(event) is Failed:
                stream.fail(event.error)
        if frame.stats is not None:
            self._counters.update(frame.stats)

    def _replied(self, event: Any) -> None:
        pending = self._calls.get(event.id)
        if pending is None or pending.reply.done():
            return
        if isinstance(event, Failed):
            pending.fail(event.error)
        else:
            pending.reply.set_result(event.value)

    # --- engine processes --------------------------------------------------------------------------

    def _ensure_running(self) -> None:
        if self._life is None:
            self._life = self._loop.create_task(self._run())
            self._life.add_done_callback(self._stopped)

    def _stopped(self, _: asyncio.Task[None]) -> None:
        """Note the end of `_run`, also where it was cancelled before its first turn."""
        self._up, self._engine, self._life, self._retiring = False, None, None, False
        self._counters.engine_ended()
        if not self.idle and not self._closed:  # a request came while it was unloaded
            self._ensure_running()

    async def _run(self) -> None:
        """Start the engine, and another when it dies, until it is unloaded or cannot be loaded."""
        deaths = 0
        try:
            while True:
                self._up_at = math.inf
                cause = await self._run_engine()
                deaths = 1 if self._loop.time() - self._up_at > STEADY_S else deaths + 1
                if not self._engine_died(cause, deaths):
                    return
                await asyncio.sleep(min(FIRST_WAIT_S * 2 ** (deaths - 2), MOST_WAIT_S) if deaths > 1 else 0)
        except FreeholdError as e:
            log.warning("%s cannot be loaded: %s", self.name, e.message)
            self._fail_all(e)
        except Exception as e:
            log.exception("%s cannot be loaded", self.name)
            self._fail_all(FreeholdError(f"internal error: {type(e).__name__}", "see the server's log"))

    async def _run_engine(self, refused: CapacityExceeded | None = None) -> str:
        """Load and serve until the process is gone; return how it ended."""
        request = await self._admit(self, refused)
        self._engine = engine = EngineProcess(self._frame, self._loading)
        watch = self._loop.create_task(self._watch(engine))
        try:
            self._info = await engine.start(request)
            self._up, self._up_at = True, self._loop.time()
            self._resume()
            return await asyncio.shield(engine.gone)
        except EngineDied as e:
            return str(e)
        except CapacityExceeded as e:
            refused = e  # `admit` makes more room, or raises it
        finally:
            self._up = False
            watch.cancel()  # and not awaited: that would swallow the cancellation of an unload in the same turn
            # Until the process has ended, so that the next one finds its memory free.
            await engine.stop(CLOSE_S if self._closed else STOP_S)
        return await self._run_engine(refused)

    def _loading(self, done: int, total: int) -> None:
        self.progress = (done, total)

    def _resume(self) -> None:
        """Give a new engine all pending requests, and those that the one before was answering."""
        self._quarantine.begin([*self._streams.values(), *self._calls.values()])
        self._loads.release()
        self._rest()

    def _engine_died(self, cause: str, deaths: int) -> bool:
        """Count a death against the requests it concerns; return whether to start the engine again."""
        log.warning("the engine of %s died: %s", self.name, cause)
        self.deaths.append(PastDeath(time.time(), cause))
        self._counters.engine_ended()
        if self._quarantine.suspect is not None:
            log.warning("job %d of %s was on trial", self._quarantine.suspect.id, self.name)
        for request in self._quarantine.blame([*self._streams.values(), *self._calls.values()]):
            request.deaths += 1
            if request.deaths > MAX_DEATHS:
                request.fail(self._lost(cause))
        if deaths > MAX_DEATHS:
            self._loads.fail(self._lost(cause))
        if deaths > MAX_DEATHS and self.idle:
            return False  # the next request tries again
        self.restarts += 1
        return True

    def _lost(self, cause: str) -> EngineLost:
        return EngineLost(
            f"the engine of {self.name} died, and so did {MAX_DEATHS} that took its place: {cause}",
            "other models are not concerned; the server's log tells more",
        )

    def _fail_all(self, error: FreeholdError) -> None:
        """End all pending requests with `error`."""
        self._quarantine.clear()
        for request in [*self._streams.values(), *self._calls.values()]:
            request.fail(error)
        self._loads.fail(error)

    async def _watch(self, engine: EngineProcess) -> None:
        """Kill an engine that sends nothing while requests wait for it."""
        while True:
            await asyncio.sleep(self._hung_s / 8)
            quiet = self._loop.time() - max(engine.heard, self._busy_at)
            if quiet > self._hung_s and not (self._up and not self._owes):
                engine.kill(f"it made no step for {quiet:.0f} s while work waited, and was killed")

    # --- idle, unloading ---------------------------------------------------------------------------

    def _used(self, keep_alive: float | None) -> None:
        if self._closed:
            raise EngineClosed("the server is shutting down", "try again when it is back")
        if not self._owes:
            self._busy_at = self._loop.time()
        self.keep_alive.used(keep_alive)

    def _rest(self) -> None:
        """Start the time after which an idle model is unloaded."""
        if self.idle and self._up and not self._closed:
            if self._retiring:
                self._expire()
            else:
                self.keep_alive.idle()

    def _expire(self) -> None:
        self._leaving = self._loop.create_task(self._leave())

    async def _leave(self) -> None:
        if self.idle:  # no request came between the timer and this task
            await self.unload()

    async def unload(self) -> None:
        """Stop the engine process and wait for its end. Running jobs end with EngineClosed."""
        self.keep_alive.cancel()
        self._up = False
        self._fail_all(EngineClosed(f"{self.name} is being unloaded", "try again; it is loaded on demand"))
        if self._life is not None and not self.leaving:
            self._life.cancel()
        await self.left()

    async def retire(self) -> None:
        """Unload now if idle, else once the requests have ended, however long later ones want it kept."""
        self._retiring = True
        if self.idle:
            await self.unload()

    async def left(self) -> None:
        """Wait until a model that is being unloaded has left its memory."""
        if self._life is not None and self.leaving:
            await asyncio.wait([self._life])

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let running ones end for up to `drain_s`, and unload."""
        self._closed = True
        until = self._loop.time() + drain_s
        while not self.idle and self._loop.time() < until:
            await asyncio.sleep(0.02)
        await self.unload()


# --- a model's statistics over all engines it has had -----------------------------------------------

_BLOCKS = {"blocks", "blocks_live", "blocks_shared", "blocks_cached"}
_CACHE = {*_BLOCKS, "states", "states_live", "states_cached", "state_bytes", "image_bytes"}
_GAUGES = {"running", "waiting", "expected_wait_s", "progress_at", *_CACHE}


class Counters:
    """The latest engine's numbers, and the sums of those before it: no counter may shrink at a restart."""

    def __init__(self) -> None:
        self._latest, self._before = EngineStats(), EngineStats()

    def update(self, stats: EngineStats) -> None:
        """Take the numbers of the present engine."""
        self._latest = stats

    @property
    def total(self) -> EngineStats:
        """The latest gauges, and counters over all engines."""
        names = (f.name for f in fields(EngineStats) if f.name not in _GAUGES)
        sums = {n: _sum(getattr(self._latest, n), getattr(self._before, n)) for n in names}
        return replace(self._latest, **sums)

    def engine_ended(self) -> None:
        """Add the numbers of an engine that is gone; the next one begins at 0."""
        self._before, self._latest = self.total, EngineStats(progress_at=self._latest.progress_at)


def _sum(now: Any, before: Any) -> Any:
    """Add two counters, or two rows of them."""
    if isinstance(now, tuple):
        return tuple(map(sum, zip_longest(now, before, fillvalue=0)))
    return now + before


# --- the tokenizer and chat template of a model in an engine process, as calls over the socket ------


class EngineTokenizer:
    """A TokenizerFace that asks an engine process; `call` sends a method's name and its arguments."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call

    async def tokenize(self, text: str, special: bool = False, client: str = "") -> list[int]:
        return await self._call("tokenize", text, special, client=client)

    async def detokenize(self, ids: Sequence[int], client: str = "") -> str:
        return await self._call("detokenize", list(ids), client=client)

    async def token_texts(self, ids: Sequence[int]) -> list[bytes]:
        return await self._call("token_texts", list(ids))

    async def render(
        self, messages: Sequence[Message], think: bool | None = None, turn: Turn = "new", client: str = ""
    ) -> list[int]:
        chat = await packed(Job(messages=tuple(messages), think=think, turn=turn))
        return await self._call("render", chat, client=client)

    async def template(self) -> dict[str, Any]:
        return await self._call("template")
