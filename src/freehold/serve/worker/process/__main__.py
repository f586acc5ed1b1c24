"""The engine process: one model, one socket to the server, until the server closes it.

Knows the order of its life: greet, load, answer, leave; knows no web and no other model. A reader thread prepares jobs
(intake.py), and the main thread computes steps and sends what each gave (intake.py). It is spawned with the socket as
its only connection, and ends when that or the server's process does.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from freehold.base.errors import EngineClosed, EngineLost, UsageError
from freehold.base.garbage import OldObjects, visit_young_only
from freehold.base.platforms import prefer_killed
from freehold.base.sandbox.children import follow_parent
from freehold.base.version import __version__
from freehold.serve.worker.process.intake import Channel, HostedModel, Intake, LiveJobs
from freehold.serve.worker.wire import (
    PROTOCOL,
    BadFrame,
    EngineReady,
    Failed,
    FromServer,
    Hello,
    Loading,
    Open,
    Reader,
)

IDLE_S = 0.25  # between looks at whether something changed while there was nothing to compute
LOADING_S = 0.1  # between reports of loading
LEAVE_S = 10.0  # for weights still being packed when the server closes the socket
SWITCH_S = 0.0005  # a step that ends while a job is prepared waits this long for the interpreter, not 5 ms
READ = 1 << 18
OOM_SCORE = 500  # when memory runs out the kernel ends an engine, which is restarted, not the server


class Process:
    """One engine process from its greeting to its end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._channel = sock, Channel(sock)
        self._open: queue.SimpleQueue[Open] = queue.SimpleQueue()
        self._model: HostedModel | None = None
        self._intake: Intake | None = None
        self._jobs: LiveJobs | None = None
        self._packs: Path | None = None  # the folder of packs where models are computed plainly

    def run(self) -> None:
        """Greet, load, answer. Never returns while the server is there, unless loading failed."""
        self._channel.send(Hello(PROTOCOL, __version__, os.getpid()))
        threading.Thread(target=self._read, name="freehold-reader", daemon=True).start()
        try:
            request = self._open.get()
            model = load(request, self._report())
        except Exception as e:
            return self._channel.send(Failed.of(0, e))
        self._model = model
        self._jobs = jobs = LiveJobs(model, self._channel)
        kv_type, threads = (request.options.get(name) for name in ("kv_type", "threads"))
        self._packs = (
            request.packs if kv_type in (None, "f16") and not threads and not request.draft else None
        )
        self._intake = Intake(model, jobs, self._channel)
        old = OldObjects()
        visit_young_only()
        self._channel.send(EngineReady(model.info))
        while True:
            try:
                stepped = model.pump(IDLE_S)
            except EngineClosed:  # by the reader, which is about to end the process
                time.sleep(LEAVE_S)
                return None
            jobs.deliver(stepped)
            old.look(quiet=not stepped)

    def _report(self) -> Callable[[int, int], None]:
        reported = 0.0

        def report(done: int, total: int) -> None:
            nonlocal reported
            if (now := time.monotonic()) - reported >= LOADING_S or done == total:
                reported = now
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
            pass  # the server was killed, which ends the process as its end of file does
        except Exception as e:  # without its reader the process would live on and hear nothing
            self._channel.send(Failed.of(0, e))
        self._leave()

    def _first(self, message: FromServer) -> None:
        if not isinstance(message, Open):
            raise BadFrame(f"{type(message).__name__} before the model is loaded")
        self._open.put(message)

    def _leave(self) -> None:
        """End the process: wait shortly for writes to disk, and for no computation."""
        if self._model is not None:
            threading.Timer(LEAVE_S, os._exit, (0,)).start()
            with suppress(Exception):
                self._learn(self._model)
            with suppress(Exception):
                self._model.close()
        os._exit(0)

    def _learn(self, model: HostedModel) -> None:
        """Keep the speed of answers that were computed alone and plainly, where this is a home's own engine."""
        usages = self._jobs.usages if self._jobs else ()
        if model.path is not None and self._packs is not None and usages:
            from freehold.choose.advisor.learning import learn

            learn(self._packs.parent, model.path, usages, quant=model.info.quantization)


def load(request: Open, report: Callable[[int, int], None]) -> HostedModel:
    """Open the model that the server named."""
    if (request.protocol, request.version) != (PROTOCOL, __version__):
        raise EngineLost(
            f"the server is freehold {request.version} (protocol {request.protocol}) and its engine process "
            f"{__version__} (protocol {PROTOCOL})",
            "freehold was replaced while the server ran; start the server again",
        )
    if request.script is not None:
        from freehold.serve.worker.process.scripted import ScriptedModel

        return ScriptedModel(request.script)
    from freehold.run.local import open_served
    from freehold.run.store.eyes import hears

    if request.model is None:
        raise UsageError("there is nothing to load")
    if hears(request.model):
        from freehold.run.local.served_speech import open_served_speech

        return open_served_speech(request.model, request.options.get("threads"))
    options = request.options if request.disk is None else {**request.options, "disk": request.disk}
    return open_served(request.model, draft=request.draft, packs=request.packs, progress=report, **options)


def main() -> None:
    """Run the engine process on the socket whose number is the first argument; the second is the server's process."""
    follow_parent(int(sys.argv[2]))
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_S)
    prefer_killed(OOM_SCORE)
    try:
        Process(socket.socket(fileno=int(sys.argv[1]))).run()
    except BaseException as e:  # an internal error: the server starts another process, which continues
        traceback.print_exception(e)
    os._exit(1)


if __name__ == "__main__":
    main()
