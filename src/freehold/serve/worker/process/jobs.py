"""What an engine process holds: a model, the jobs it is answering, the events of each step, and the way to send them.

Knows jobs, events and one lock between intake and steps; knows no socket and no prompt.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import DamagedPack, UsageError
from freehold.base.machine import CROWDED, Crowd
from freehold.base.serving import (
    Begin,
    EmbedJob,
    EngineStats,
    Job,
    ModelInfo,
    SpeechFacts,
    SpeechJob,
    SpeechPart,
)
from freehold.base.types import Chunk, Message, Turn, Usage
from freehold.serve.worker.wire import Began, Event, Failed, Frame, Piece, Prefilled, WireMessage, Writer


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
