"""Prepares what the server sends: jobs and calls, each kind in threads of its own.

Knows messages, threads and which work takes long; knows no step. Jobs are prepared by the reader thread, long ones and
formats to be compiled in others, so that a short one need not wait; calls that only count tokens in two of their own,
one for long texts; embeddings in threads of their own, where they wait for their steps; and so recordings.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from freehold.base.errors import DamagedPack, UsageError
from freehold.base.platforms import run_thread_below
from freehold.base.serving import EmbedJob, Job, Vectors
from freehold.base.stopping import Stopped, stops_when
from freehold.serve.worker.process.jobs import Channel, HostedJob, HostedModel, LiveJobs
from freehold.serve.worker.process.recordings import Recordings
from freehold.serve.worker.wire import (
    CallReply,
    Cancel,
    Event,
    Failed,
    FromServer,
    ModelCall,
    Submit,
    decode,
    read,
    size,
)

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
