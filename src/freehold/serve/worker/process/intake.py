"""Prepares what the server sends, each kind in threads of its own, and keeps the jobs and recordings that are open.

Knows messages, threads and which work takes long; knows no step. Jobs are prepared by the reader thread, long ones and
formats to be compiled in others, so that a short one need not wait; calls that only count tokens in two of their own,
one for long texts; embeddings in threads of their own, where they wait for their steps; and so recordings.

What an engine process holds is its model, the jobs it is answering, the events of each step, and the way to send them,
under one lock between intake and steps.

Recordings are known by the server's numbers; each call has one reply. Bytes are taken in by the reader thread, in
order; opening and transcribing run in threads of their own. A call that is cancelled stops within a piece of its work.
Knows no form of sound.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import DamagedPack, UsageError
from freehold.base.machine import CROWDED, Crowd
from freehold.base.platforms import run_thread_below
from freehold.base.serving import (
    Begin,
    EmbedJob,
    EngineStats,
    Job,
    ModelInfo,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
    Vectors,
    reads_text,
)
from freehold.base.stopping import Stopped, check_stopped, stops_when
from freehold.base.types import Chunk, Message, Turn, Usage
from freehold.serve.worker.wire import (
    MAX_RECORDING_BYTES,
    Began,
    CallReply,
    Cancel,
    Event,
    Failed,
    Frame,
    FromServer,
    HearBegin,
    HearBytes,
    HearReply,
    ModelCall,
    Piece,
    Prefilled,
    Submit,
    WireMessage,
    Writer,
    decode,
    read,
    size,
)

# --- a model and its jobs --------------------------------------------------------------------------


# What an engine process holds: a model that prepares jobs, and computes steps when it is pumped.
# Types only. local/opening.py implements them with our engine, scripted.py without one.
class HostedJob(Protocol):
    """A job that is prepared, and computed once it has entered."""

    @property
    def begin(self) -> Begin | None: ...
    @property
    def done(self) -> bool: ...
    @property
    def prefill(self) -> tuple[int, int] | None:
        """Return prompt tokens read and all of them; None once an answer has begun, or where it is not known."""
        ...

    def enter(self) -> None: ...
    def take(self) -> list[tuple[int, Chunk]]: ...
    def cancel(self) -> None: ...


class HostedVectors(Protocol):
    """Embeddings of texts."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...
    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def cut(self) -> tuple[int, ...]: ...


class HostedModel(Protocol):
    """The model of an engine process."""

    @property
    def path(self) -> Path | None:
        """Return the file or folder of its weights, None for a script."""
        ...

    @property
    def info(self) -> ModelInfo: ...
    @property
    def stats(self) -> EngineStats: ...
    def start(self, job: Job) -> HostedJob: ...
    def pump(self, timeout: float) -> bool: ...
    def close(self) -> None: ...
    def tokenize(self, text: str, special: bool = False) -> list[int]: ...
    def detokenize(self, ids: Sequence[int]) -> str: ...
    def token_texts(self, ids: Sequence[int]) -> list[bytes]: ...
    def render(self, messages: Sequence[Message], think: bool | None, turn: Turn) -> list[int]: ...
    def count(self, job: Job) -> int: ...
    def template(self) -> dict[str, Any]: ...
    def add_adapter(self, name: str, path: str) -> ModelInfo: ...
    def remove_adapter(self, name: str) -> ModelInfo: ...
    def embed_job(self, job: EmbedJob) -> HostedVectors: ...


class HostedHearing(Protocol):
    """A recording that is open in a model."""

    @property
    def facts(self) -> SpeechFacts: ...
    def part(self, pause: Callable[[], None]) -> SpeechPart | None:
        """Return the texts of the next chunks, None after the last; `pause` is called between pieces of the work."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Listener(Protocol):
    """What a model that hears has besides."""

    def listen(self, data: bytes, job: SpeechJob, skip: int) -> HostedHearing: ...
    def beat(self) -> None:
        """Count a sign of work between steps."""
        ...


# The engine process's sending end of the socket, shared by its threads.
class Channel:
    """Sends messages, one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._writer, self._lock = sock, Writer(), threading.Lock()

    def give_up(self, error: DamagedPack) -> NoReturn:
        """End the process, whose weights are not the model's; the next one packs them anew and takes the jobs over."""
        self.send(Failed.of(0, error))
        os._exit(1)

    def send(self, message: WireMessage) -> None:
        """Send one message. Raises UsageError for one too large; a server that is gone ends the process."""
        with self._lock:
            frame = self._writer.frame(message)
            try:
                self._sock.sendall(frame)
            except OSError:
                os._exit(0)

    def send_events(self, events: list[Event], stats: EngineStats | None) -> None:
        """Send one frame, or one for each event if that would be too large."""
        try:
            self.send(Frame(events, stats))
        except UsageError as e:
            if len(events) == 1:
                return self.send(Frame([Failed.of(events[0].id, e)], stats))
            for event in events:
                self.send_events([event], stats)


KEPT_USAGES = 64  # answers whose speed is kept for `freehold fit` when the process ends, the latest ones


class LiveJobs:
    """Jobs between their submission and their last chunk."""

    def __init__(self, model: HostedModel, channel: Channel) -> None:
        self._model, self._channel = model, channel
        self._live: dict[int, HostedJob] = {}
        self._read: dict[int, tuple[int, int]] = {}  # by job, what of its prompt was reported as read
        self._sent = EngineStats()
        self._expected: set[int] = set()  # submitted and not yet entered; a cancel takes them out
        self._alone: int | None = None  # the job that has shared no step so far
        self._crowd = Crowd()  # since that job came
        self.usages: deque[Usage] = deque(maxlen=KEPT_USAGES)  # of answers that were alone
        # Locked from entering a job until it is in `_live`, so that no step's tokens are missed.
        self._gate = threading.Lock()

    def expect(self, ids: list[int]) -> None:
        """Note jobs that are being prepared."""
        self._expected.update(ids)

    def is_expected(self, id: int) -> bool:
        """Return whether a job that is being prepared has not been cancelled."""
        return id in self._expected

    def enter(self, ready: list[tuple[int, HostedJob]]) -> None:
        """Queue prepared jobs in the engine, and report that they began."""
        events: list[Event] = []
        with self._gate:
            for id, job in ready:
                if id in self._expected:
                    self._expected.discard(id)
                    events += self._entered(id, job)
            if events:
                self._channel.send_events(events, None)

    def _entered(self, id: int, job: HostedJob) -> list[Event]:
        try:
            job.enter()
        except Exception as e:
            return [Failed.of(id, e)]
        self._live[id] = job
        self._alone = id if len(self._live) == 1 else None
        self._crowd = Crowd() if self._alone is not None else self._crowd
        return [Began(id, job.begin)] if job.begin else []

    def cancel(self, id: int) -> None:
        """Stop a job, prepared or running."""
        with self._gate:
            self._expected.discard(id)
            job = self._live.pop(id, None)
            self._read.pop(id, None)
        if job is not None:
            job.cancel()

    def refuse(self, id: int, error: Exception) -> None:
        """Report that a job cannot be answered."""
        self._expected.discard(id)
        self._channel.send_events([Failed.of(id, error)], None)

    def deliver(self, stepped: bool) -> None:
        """Send what the step gave, and the statistics where they changed, as a cancelled job changes them too."""
        events: list[Event] = []
        with self._gate:
            for id, job in list(self._live.items()):
                self._collect(id, job, events)
        stats = self._model.stats
        if events or stepped or stats != self._sent:
            self._sent = stats
            self._channel.send_events(events, stats)

    def _collect(self, id: int, job: HostedJob, events: list[Event]) -> None:
        had_begun = job.begin is not None
        try:
            pieces = job.take()
        except DamagedPack as e:
            self._channel.give_up(e)
        except Exception as e:
            events.append(Failed.of(id, e))
            del self._live[id]
            self._read.pop(id, None)
            return job.cancel()
        if not had_begun and job.begin is not None:
            events.append(Began(id, job.begin))
        read = None if pieces else job.prefill
        if read is not None and read[0] and read != self._read.get(id):  # none while it waits in the queue
            self._read[id] = read
            events.append(Prefilled(id, *read))
        for index, chunk in pieces:
            events.append(Piece(id, index, chunk))
            self._alone = None if index else self._alone
            if chunk.usage is not None and id == self._alone and self._crowd.share() <= CROWDED:
                self.usages.append(chunk.usage)
        if pieces:
            self._read.pop(id, None)
        if job.done:
            del self._live[id]
        return None


# --- recordings ------------------------------------------------------------------------------------

MOST = 16  # recordings that have begun and not ended: a server opens fewer
BEAT_S = 1.0  # between signs of life while there is no step
OPENING_S = 1800.0  # in which a recording is opened, at most; then a process without a sign counts as hung


@dataclass(slots=True)
class HeldRecording:
    """One of them: its bytes as they come, and then what hears it."""

    begin: HearBegin
    data: BytesIO = field(default_factory=BytesIO)  # whose bytes are taken out without a copy
    size: int = 0  # of those that came
    hearing: HostedHearing | None = None


class Recordings:
    """All of them. `alive` tells the server that the process works, between its replies."""

    def __init__(self, model: HostedModel, alive: Callable[[], None]) -> None:
        self._model, self._alive = model, alive
        self._held: dict[int, HeldRecording] = {}
        self._told = 0.0

    # --- quick calls, in the reader thread -----------------------------------------------------------

    def call(self, method: str, args: list[Any]) -> Any:
        """Answer hear_begin, hear_bytes or hear_end. Raises UsageError for what no server sends."""
        match method:
            case "hear_begin":
                return self._begin(read(args[0], HearBegin))
            case "hear_bytes":
                return self._bytes(read(args[0], HearBytes))
        return self._end(read(args[0], int))

    def _begin(self, begin: HearBegin) -> int:
        if not isinstance(self._model, Listener):
            raise reads_text(self._model.info.name)
        if not 0 < begin.size <= MAX_RECORDING_BYTES:
            raise UsageError(
                f"the recording has {begin.size:,} bytes; expected 1 to {MAX_RECORDING_BYTES:,}",
                "cut it into several",
                "file",
            )
        if begin.recording not in self._held and len(self._held) >= MOST:
            raise UsageError(f"{len(self._held)} recordings are open; the limit is {MOST}")
        self._end(begin.recording)
        self._held[begin.recording] = HeldRecording(begin)
        return 0

    def _bytes(self, piece: HearBytes) -> int | None:
        held = self._held.get(piece.recording)
        if held is None:
            return None
        if piece.at != held.size or held.size + len(piece.data) > held.begin.size:
            raise UsageError(
                f"bytes {piece.at:,} to {piece.at + len(piece.data):,} of a recording came where {held.size:,} of "
                f"{held.begin.size:,} are there"
            )
        held.data.write(piece.data)
        held.size += len(piece.data)
        return held.size

    def _end(self, recording: int) -> int:
        held = self._held.pop(recording, None)
        if held is not None and held.hearing is not None:
            held.hearing.close()
        return 0

    # --- work, in threads of its own -----------------------------------------------------------------

    def next(self, recording: int) -> HearReply | None:
        """Open a recording, the first time; then transcribe its next chunks. None for one that is not here."""
        held = self._held.get(recording)
        if held is None:
            return None
        if held.hearing is not None:
            return HearReply(part=held.hearing.part(self._pause))
        if held.size < held.begin.size:
            raise UsageError(f"{held.size:,} of a recording's {held.begin.size:,} bytes are there")
        assert isinstance(self._model, Listener), "begin refused it"
        taken, held.data = held.data, BytesIO()
        with self._living(self._model):
            hearing = self._model.listen(taken.getvalue(), held.begin.job, held.begin.skip)
        taken.close()
        held.hearing = hearing  # before the look: who ends it afterwards closes it
        if self._held.get(recording) is not held:  # it ended meanwhile
            hearing.close()
            return None
        return HearReply(facts=hearing.facts)

    def _pause(self) -> None:
        check_stopped()
        if time.monotonic() - self._told >= BEAT_S:
            self._told = time.monotonic()
            self._alive()

    @contextmanager
    def _living(self, listener: Listener) -> Iterator[None]:
        """Tell the server each BEAT_S that a recording is being opened, which has no pauses."""
        over, until = threading.Event(), time.monotonic() + OPENING_S

        def beat() -> None:
            while not over.wait(BEAT_S) and time.monotonic() < until:
                listener.beat()
                self._alive()

        threading.Thread(target=beat, name="freehold-beat", daemon=True).start()
        try:
            yield
        finally:
            over.set()


# --- jobs and calls --------------------------------------------------------------------------------

TOGETHER_S = 0.002  # jobs that came at once enter at once, if it takes no longer to prepare them
EMBEDDING = 4  # requests for embeddings, of each priority, that wait for steps together and share them
HEARING = 2  # recordings of one client at work: one is opened while another is transcribed
QUICK = ("hear_begin", "hear_bytes", "hear_end")  # answered by the reader thread, in order
LONG_JOB = 16 << 10  # bytes; rendering and tokenizing more than this would keep the next job waiting,
MANY_ANSWERS = 8  # and so would making more than this: 128 take 6 ms


class Intake:
    """Takes in what the server sends, from the socket's reading thread."""

    def __init__(self, model: HostedModel, jobs: LiveJobs, channel: Channel) -> None:
        self._model, self._jobs, self._channel = model, jobs, channel
        self._long_jobs = IntakeQueue[Submit]("intake", 2, lambda job: self._start([job]))
        # A request's own template may run to its limit, and delays only such requests.
        self._templated = IntakeQueue[Submit]("template", 1, lambda job: self._start([job]))
        # A long text delays no short one, and neither delays a prompt or a format.
        self._calls, self._long_calls = (IntakeQueue("tokens", 1, self._answer) for _ in range(2))
        # One for each priority: a batch that holds all threads of a shared one would delay every request.
        self._embedding, self._batch = (IntakeQueue("embed", EMBEDDING, self._answer) for _ in range(2))
        self._recordings = Recordings(model, lambda: channel.send_events([], model.stats))
        self._hearing = IntakeQueue[ModelCall]("hear", HEARING, self._answer)

    def take(self, messages: list[FromServer]) -> None:
        """Handle messages in order; the short jobs among them enter together."""
        jobs = [m for m in messages if isinstance(m, Submit)]
        self._jobs.expect([m.id for m in jobs])
        short: list[Submit] = []
        for message in messages:
            if isinstance(message, ModelCall) and message.method in QUICK:
                self._answer(message)
            elif isinstance(message, ModelCall):
                self._threads_for(message).put(message.id, message, message.client)
            elif isinstance(message, Submit) and (peek := _peek_long(message)) is not None:
                work = self._templated if peek.template else self._long_jobs
                work.put(message.id, message, peek.client or peek.tenant)
            elif isinstance(message, Submit):
                short.append(message)
        if short:
            self._start(short)
        for message in messages:
            if isinstance(message, Cancel):
                self._cancel(message.id)

    def _cancel(self, id: int) -> None:
        self._jobs.cancel(id)
        for work in (
            self._long_jobs,
            self._templated,
            self._calls,
            self._long_calls,
            self._embedding,
            self._batch,
            self._hearing,
        ):
            work.cancel(id)

    def _threads_for(self, call: ModelCall) -> IntakeQueue[ModelCall]:
        match call:
            case ModelCall(method="embed", args=[{"priority": "batch"}]):
                return self._batch
            case ModelCall(method="embed"):
                return self._embedding
            case ModelCall(method="hear_next"):
                return self._hearing
        return self._long_calls if size(call.args) > LONG_JOB else self._calls

    def _start(self, jobs: list[Submit]) -> None:
        ready: list[tuple[int, HostedJob]] = []
        began = time.monotonic()
        for message in jobs:
            try:
                if self._jobs.is_expected(message.id):
                    ready.append((message.id, self._model.start(decode(message.job, Job))))
            except Stopped:
                continue
            except Exception as e:
                self._jobs.refuse(message.id, e)
            if time.monotonic() - began > TOGETHER_S:
                self._jobs.enter(ready)
                ready, began = [], time.monotonic()
        self._jobs.enter(ready)

    def _answer(self, call: ModelCall) -> None:
        try:
            event: Event = CallReply(call.id, self._called(call))
        except DamagedPack as e:
            self._channel.give_up(e)
        except Stopped:
            raise
        except Exception as e:
            event = Failed.of(call.id, e)
        self._channel.send_events([event], None)

    def _called(self, call: ModelCall) -> Any:
        model, args = self._model, call.args
        match call.method:
            case "tokenize":
                return model.tokenize(*args)
            case "detokenize":
                return model.detokenize(*args)
            case "token_texts":
                return model.token_texts(*args)
            case "render":
                job = read(args[0], Job)
                return model.render(job.messages or (), job.think, job.turn)
            case "count":
                return model.count(read(args[0], Job))
            case "template":
                return model.template()
            case "add_adapter":
                return model.add_adapter(*args)
            case "remove_adapter":
                return model.remove_adapter(*args)
            case "embed":
                return self._embedded(*args)
            case "hear_begin" | "hear_bytes" | "hear_end":
                return self._recordings.call(call.method, args)
            case "hear_next":
                return self._recordings.next(read(args[0], int))
        raise UsageError(f"no call is named {call.method!r}")

    def _embedded(self, job: Any) -> Vectors:
        got = self._model.embed_job(msgspec.convert(job, EmbedJob))
        data = np.ascontiguousarray(got.vectors, "<f4").tobytes()
        return Vectors(data, got.vectors.shape[1], got.tokens, got.cut)


@dataclass(frozen=True)
class _PeekMessage:
    parts: tuple[object, ...] = ()  # none, where a message has no picture


@dataclass(frozen=True)
class _Peek:
    """The fields that decide, beside its size, whether a job takes long to prepare; and whose it is."""

    format: object = None
    template: str = ""
    tools: tuple[object, ...] = ()
    n: object = 1  # checked where the job is prepared
    tenant: str = ""
    client: str = ""
    messages: tuple[_PeekMessage, ...] | None = None


def _peek_long(message: Submit) -> _Peek | None:
    """Return the fields that say how a job is prepared, or None for one that takes no time."""
    try:
        peek = decode(message.job, _Peek)
    except UsageError:  # it is decoded again, and then refused
        return None
    is_long = len(memoryview(message.job)) > LONG_JOB or peek.format is not None or bool(peek.tools)
    is_long = is_long or (isinstance(peek.n, int) and peek.n > MANY_ANSWERS)
    is_long = is_long or any(
        message.parts for message in peek.messages or ()
    )  # a picture's rows take seconds
    return peek if is_long or peek.template else None


# --- queues with threads of their own, one for each kind of work that takes long to prepare ---------
# Only this queue keeps a waiting request, so cancelling one frees its text; one that runs ends at its next
# check (stopping.py). The next message is of the client with the fewest at work, then of the one whose turn
# was longest ago, and one thread is left to others: whatever a client sends, another's message waits for none
# of that client's.

NICE = 5  # of their threads: they work beside the steps of all
T = TypeVar("T")


class IntakeQueue(Generic[T]):
    """Messages that wait for one of `threads`, or are run by one; `run` is called with each."""

    def __init__(self, name: str, threads: int, run: Callable[[T], None]) -> None:
        """`threads`: what one client's messages may hold; there is one more for those of others."""
        self._run = run
        self._pool = ThreadPoolExecutor(threads + 1, f"freehold-{name}", run_thread_below, (NICE,))
        self._most = threads
        self._live: dict[int, T] = {}
        self._lock = threading.Lock()  # of what follows
        self._waiting: dict[str, deque[int]] = {}  # by client, the one whose turn was longest ago first
        self._working: Counter[str] = Counter()

    def put(self, id: int, message: T, client: str = "") -> None:
        """Queue a message of a client's."""
        self._live[id] = message
        with self._lock:
            self._waiting.setdefault(client, deque()).append(id)
        self._pool.submit(self._work)

    def cancel(self, id: int) -> None:
        """Drop a message that waits, or stop its work. Harmless for any other id."""
        self._live.pop(id, None)

    def _work(self) -> None:
        """Run messages as long as there is one that may run now."""
        while (turn := self._next()) is not None:
            try:
                self._run_turn(*turn)
            except BaseException:
                self._pool.submit(self._work)  # for those that wait
                raise

    def _run_turn(self, client: str, id: int) -> None:
        try:
            self._run_one(id)
        finally:
            with self._lock:
                self._working[client] -= 1
                self._working += Counter()  # drops those at zero

    def _next(self) -> tuple[str, int] | None:
        with self._lock:
            ready = [client for client in self._waiting if self._working[client] < self._most]
            if not ready:
                return None
            client = min(ready, key=self._working.__getitem__)
            waiting = self._waiting.pop(client)
            id = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting  # behind the others
            self._working[client] += 1
            return client, id

    def _run_one(self, id: int) -> None:
        message = self._live.get(id)
        if message is None:
            return
        try:
            with stops_when(lambda: id not in self._live):
                self._run(message)
        except Stopped:
            pass
        finally:
            self._live.pop(id, None)
