"""The engine process: one model, one socket to the server, until the server closes it.

Knows jobs, steps and frames; knows no web and no other model. Three kinds of threads: the reader takes jobs in
(long ones, and formats to be compiled, in two threads, so that a short one need not wait; what only counts tokens in
two of their own, one for long texts; embeddings in threads of their own, where they wait for their steps), and the
main thread computes steps and sends what each gave. It is spawned with the socket as its only way to the world, and
ends when that or the server's process does.
Path: client.py -> python -m freehold.worker.process FD SERVER -> ServedModel.start, ServedModel.pump -> Frame
"""

from __future__ import annotations

import faulthandler
import gc
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from freehold import __version__
from freehold.errors import DamagedPack, EngineClosed, EngineLost, UsageError
from freehold.machine import CROWDED, Crowd
from freehold.sandbox.children import follow_parent
from freehold.serving import Begin, EmbedJob, EngineStats, Job, ModelInfo, Vectors
from freehold.stopping import Stopped
from freehold.types import Chunk, Message, Turn, Usage
from freehold.worker.intake import IntakeQueue
from freehold.worker.wire import (
    PROTOCOL,
    BadFrame,
    Began,
    CallReply,
    Cancel,
    EngineReady,
    Event,
    Failed,
    Frame,
    FromServer,
    Hello,
    Loading,
    ModelCall,
    Open,
    Piece,
    Reader,
    Submit,
    WireMessage,
    Writer,
    decode,
    read,
    size,
)

IDLE_S = 0.25  # between looks at whether something changed while there was nothing to compute
LOADING_S = 0.1  # between reports of loading
LEAVE_S = 10.0  # for weights still being packed when the server closes the socket
SWITCH_S = 0.0005  # a step that ends while a job is taken in waits this long for the interpreter, not 5 ms
TOGETHER_S = 0.002  # jobs that came at once enter at once, if it takes no longer to read them
EMBEDDING = 4  # requests for embeddings, of each priority, that wait for steps together and share them
LONG_JOB = 16 << 10  # bytes; rendering and tokenizing more than this would keep the next job waiting
LEARNT = 64  # answers whose speed is kept for `freehold fit` when the process ends, the latest ones
READ = 1 << 18
OOM_SCORE = 500  # when memory runs out the kernel takes an engine, which comes back, not the server


class HostedJob(Protocol):
    """A job under way (local.Answering, or a scripted one)."""

    @property
    def begin(self) -> Begin | None: ...
    @property
    def done(self) -> bool: ...
    def enter(self) -> None: ...
    def take(self) -> list[tuple[int, Chunk]]: ...
    def cancel(self) -> None: ...


class HostedVectors(Protocol):
    """What texts became (local.Embeddings, or a scripted one)."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...
    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def cut(self) -> tuple[int, ...]: ...


class HostedModel(Protocol):
    """What answers here: an LLM, or a script."""

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


class Channel:
    """The socket's sending end, for all threads."""

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


class Answers:
    """The jobs that are answered now, and the events they give."""

    def __init__(self, model: HostedModel, channel: Channel) -> None:
        self._model, self._channel = model, channel
        self._live: dict[int, HostedJob] = {}
        self._told = EngineStats()
        self._coming: set[int] = set()  # announced and not yet entered; a cancel takes them out
        self._alone: int | None = None  # the job that nobody shared a step with so far
        self._crowd = Crowd()  # since that job came
        self.usages: deque[Usage] = deque(maxlen=LEARNT)  # of answers that were alone
        # Held from entering a job until it is in `_live`, so that no step's tokens are left lying.
        self._gate = threading.Lock()

    def expect(self, ids: list[int]) -> None:
        """Note jobs that are being taken in."""
        self._coming.update(ids)

    def is_expected(self, id: int) -> bool:
        """Tell whether nobody has cancelled a job that is being taken in."""
        return id in self._coming

    def enter(self, ready: list[tuple[int, HostedJob]]) -> None:
        """Let the engine have jobs, and say that they began."""
        events: list[Event] = []
        with self._gate:
            for id, answering in ready:
                if id in self._coming:
                    self._coming.discard(id)
                    events += self._entered(id, answering)
            if events:
                self._channel.send_events(events, None)

    def _entered(self, id: int, answering: HostedJob) -> list[Event]:
        try:
            answering.enter()
        except Exception as e:
            return [Failed.of(id, e)]
        self._live[id] = answering
        self._alone = id if len(self._live) == 1 else None
        self._crowd = Crowd() if self._alone is not None else self._crowd
        return [Began(id, answering.begin)] if answering.begin else []

    def cancel(self, id: int) -> None:
        """Stop a job wherever it is."""
        with self._gate:
            self._coming.discard(id)
            answering = self._live.pop(id, None)
        if answering is not None:
            answering.cancel()

    def refuse(self, id: int, error: Exception) -> None:
        """Say that a job cannot be answered."""
        self._coming.discard(id)
        self._channel.send_events([Failed.of(id, error)], None)

    def deliver(self, stepped: bool) -> None:
        """Send what the step gave. One that gave nothing is told too, and what a cancelled job gave back."""
        events: list[Event] = []
        with self._gate:
            for id, answering in list(self._live.items()):
                self._collect(id, answering, events)
        stats = self._model.stats
        if events or stepped or stats != self._told:
            self._told = stats
            self._channel.send_events(events, stats)

    def _collect(self, id: int, answering: HostedJob, events: list[Event]) -> None:
        had_begun = answering.begin is not None
        try:
            pieces = answering.take()
        except DamagedPack as e:
            self._channel.give_up(e)
        except Exception as e:
            events.append(Failed.of(id, e))
            del self._live[id]
            return answering.cancel()
        if not had_begun and answering.begin is not None:
            events.append(Began(id, answering.begin))
        for index, chunk in pieces:
            events.append(Piece(id, index, chunk))
            self._alone = None if index else self._alone
            if chunk.usage is not None and id == self._alone and self._crowd.share() <= CROWDED:
                self.usages.append(chunk.usage)
        if answering.done:
            del self._live[id]
        return None


class Intake:
    """Takes in what the server sends, from the socket's reading thread."""

    def __init__(self, model: HostedModel, answers: Answers, channel: Channel) -> None:
        self._model, self._answers, self._channel = model, answers, channel
        self._long_jobs = IntakeQueue[Submit]("intake", 2, lambda job: self._start([job]))
        # A request's own template may run to its limit, and holds up none but such requests.
        self._templated = IntakeQueue[Submit]("template", 1, lambda job: self._start([job]))
        # A long text never keeps a short one waiting, and neither keeps a prompt or a format.
        self._calls, self._long_calls = (IntakeQueue("tokens", 1, self._answer) for _ in range(2))
        # One for each priority: a batch that holds all threads of the only one would hold up everybody.
        self._embedding, self._batch = (IntakeQueue("embed", EMBEDDING, self._answer) for _ in range(2))

    def take(self, messages: list[FromServer]) -> None:
        """Handle messages in order; the short jobs among them enter together."""
        jobs = [m for m in messages if isinstance(m, Submit)]
        self._answers.expect([m.id for m in jobs])
        short: list[Submit] = []
        for message in messages:
            if isinstance(message, ModelCall):
                self._threads_for(message).put(message.id, message)
            elif isinstance(message, Submit) and (work := self._work_for(message)):
                work.put(message.id, message)
            elif isinstance(message, Submit):
                short.append(message)
        if short:
            self._start(short)
        for message in messages:
            if isinstance(message, Cancel):
                self._cancel(message.id)

    def _cancel(self, id: int) -> None:
        self._answers.cancel(id)
        for work in (
            self._long_jobs,
            self._templated,
            self._calls,
            self._long_calls,
            self._embedding,
            self._batch,
        ):
            work.cancel(id)

    def _work_for(self, message: Submit) -> IntakeQueue[Submit] | None:
        """Return the threads that take a job in, or None for one that takes no time."""
        try:
            peek = decode(message.job, _Peek)
        except UsageError:  # it is read again, and then refused
            return None
        if peek.template:
            return self._templated
        is_long = len(memoryview(message.job)) > LONG_JOB or peek.format is not None or bool(peek.tools)
        return self._long_jobs if is_long else None

    def _threads_for(self, call: ModelCall) -> IntakeQueue[ModelCall]:
        match call:
            case ModelCall(method="embed", args=[{"priority": "batch"}]):
                return self._batch
            case ModelCall(method="embed"):
                return self._embedding
        return self._long_calls if size(call.args) > LONG_JOB else self._calls

    def _start(self, jobs: list[Submit]) -> None:
        ready: list[tuple[int, HostedJob]] = []
        began = time.monotonic()
        for message in jobs:
            try:
                if self._answers.is_expected(message.id):
                    ready.append((message.id, self._model.start(decode(message.job, Job))))
            except Stopped:
                continue
            except Exception as e:
                self._answers.refuse(message.id, e)
            if time.monotonic() - began > TOGETHER_S:
                self._answers.enter(ready)
                ready, began = [], time.monotonic()
        self._answers.enter(ready)

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
                messages, think, turn = args
                return model.render([Message(*m) for m in messages], think, read(turn, Turn))
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
        raise UsageError(f"no call is named {call.method!r}")

    def _embedded(self, job: Any) -> Vectors:
        got = self._model.embed_job(msgspec.convert(job, EmbedJob))
        data = np.ascontiguousarray(got.vectors, "<f4").tobytes()
        return Vectors(data, got.vectors.shape[1], got.tokens, got.cut)


@dataclass(frozen=True)
class _Peek:
    """What tells beside its size whether a job takes long to take in."""

    format: object = None
    template: str = ""
    tools: tuple[object, ...] = ()


class Process:
    """One engine process from its greeting to its end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._channel = sock, Channel(sock)
        self._open: queue.SimpleQueue[Open] = queue.SimpleQueue()
        self._model: HostedModel | None = None
        self._intake: Intake | None = None
        self._answers: Answers | None = None
        self._packs: Path | None = None  # the folder of packs where models are computed plainly

    def run(self) -> None:
        """Greet, load, answer. Never returns while the server is there, unless loading failed."""
        self._channel.send(Hello(PROTOCOL, __version__, os.getpid()))
        threading.Thread(target=self._read, name="freehold-reader", daemon=True).start()
        try:
            asked = self._open.get()
            model = load(asked, self._report())
        except Exception as e:
            return self._channel.send(Failed.of(0, e))
        self._model = model
        self._answers = answers = Answers(model, self._channel)
        kv_type, threads = (asked.options.get(name) for name in ("kv_type", "threads"))
        self._packs = asked.packs if kv_type in (None, "f16") and not threads and not asked.draft else None
        self._intake = Intake(model, answers, self._channel)
        gc.collect()
        gc.freeze()  # what loading made lives as long as we do
        self._channel.send(EngineReady(model.info))
        while True:
            try:
                stepped = model.pump(IDLE_S)
            except EngineClosed:  # by the reader, which is about to end the process
                time.sleep(LEAVE_S)
                return None
            answers.deliver(stepped)

    def _report(self) -> Callable[[int, int], None]:
        told = 0.0

        def report(done: int, total: int) -> None:
            nonlocal told
            if (now := time.monotonic()) - told >= LOADING_S or done == total:
                told = now
                self._channel.send(Loading(done, total))

        return report

    def _read(self) -> None:
        reader = Reader(FromServer)
        try:
            while data := self._sock.recv(READ):
                messages = reader.push(data)
                if self._intake is not None:
                    self._intake.take(messages)
                else:
                    for message in messages:
                        self._first(message)
        except BadFrame as e:
            self._channel.send(Failed(0, "EngineLost", f"the server sent {e}"))
        except OSError:
            pass  # a server that was killed: as good as its end of file
        self._leave()

    def _first(self, message: FromServer) -> None:
        if not isinstance(message, Open):
            raise BadFrame(f"{type(message).__name__} before the model is loaded")
        self._open.put(message)

    def _leave(self) -> None:
        """End the process: give what is being written to disk a moment, and computing none."""
        if self._model is not None:
            threading.Timer(LEAVE_S, os._exit, (0,)).start()
            with suppress(Exception):
                self._learn(self._model)
            with suppress(Exception):
                self._model.close()
        os._exit(0)

    def _learn(self, model: HostedModel) -> None:
        """Keep what answers took that were computed alone and plainly, where this is a home's own engine."""
        path, packs, usages = (
            getattr(model, "path", None),
            self._packs,
            self._answers and self._answers.usages,
        )
        if path is not None and packs is not None and usages:
            from freehold.advisor.learning import learn

            learn(packs.parent, path, usages)


def load(asked: Open, report: Callable[[int, int], None]) -> HostedModel:
    """Open what the server asked for."""
    if (asked.protocol, asked.version) != (PROTOCOL, __version__):
        raise EngineLost(
            f"the server is freehold {asked.version} (protocol {asked.protocol}) and its engine process "
            f"{__version__} (protocol {PROTOCOL})",
            "freehold was replaced while the server ran; start the server again",
        )
    if asked.script is not None:
        from freehold.worker.scripted import ScriptedModel

        return ScriptedModel(asked.script)
    from freehold.local import open_served

    if asked.model is None:
        raise UsageError("there is nothing to load")
    options = asked.options if asked.disk is None else {**asked.options, "disk": asked.disk}
    return open_served(asked.model, draft=asked.draft, packs=asked.packs, progress=report, **options)


def main() -> None:
    """Run the engine process on the socket whose number is the first argument; the second is the server's process."""
    follow_parent(int(sys.argv[2]))
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_S)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE))
    try:
        Process(socket.socket(fileno=int(sys.argv[1]))).run()
    except BaseException as e:  # a mistake of ours: the server starts another process, which goes on
        traceback.print_exception(e)
    os._exit(1)


if __name__ == "__main__":
    main()
