"""Answers being made for callers, apart from any connection: a run's life, its events, and all runs of a server.

A run is a ServerCall as a request is: it counts among the server's calls, so a drain waits for it and a stop cuts it,
and its line in the log and in the metrics is written as theirs. Knows a caller, events and an engine's deaths; what is
computed is its kinds' (ChatRun, AgainRun).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from freehold.base.errors import EngineClosed
from freehold.serve.http.core.call import HttpCall, RequestWork, ServerCall
from freehold.serve.http.core.gate import log_request
from freehold.serve.http.core.problems import Problem, Refused

if TYPE_CHECKING:  # a server starts without its chats
    from freehold.serve.chats.folder import ChatFolder
    from freehold.serve.chats.types import ChatFinish

TICK_S = 0.5  # between two looks at an answer that does not grow, and at the engine's deaths
ROUTE = "/console/api/runs"


class RunStopped(Exception):
    """The user stopped the run."""


class ConsoleRun(ServerCall):
    """A run of the caller that sent `origin`, on the chat `chat` of `folder`."""

    def __init__(self, origin: HttpCall | ConsoleRun, folder: ChatFolder, chat: str, model: str) -> None:
        super().__init__(origin.server)
        self.key, self.owner, self.address = origin.key, origin.owner, origin.address
        self._labels, self._asked_by = origin.labels, origin.caller
        self.door, self.method, self.path, self.route = "console", "RUN", ROUTE, ROUTE
        self.id = secrets.token_urlsafe(12)
        self.folder, self.chat, self.model = folder, chat, model
        self.events = EventLog()
        self.ended_at: float | None = None  # time.monotonic()
        self._life: asyncio.Task[None] | None = None
        self._came = 0  # events that a model made, as of now,
        self._seen = 0  # and as of the last tick
        self._deaths = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the request which started the run asked for."""
        return self._labels

    @property
    def caller(self) -> str:
        """The group that shares limits."""
        return self._asked_by

    @property
    def running(self) -> bool:
        return self.ended_at is None

    @property
    def settled(self) -> bool:
        """Whether the run is over and nothing of it is in memory alone."""
        return not self.running

    def start(self) -> None:
        """Begin; returns at once."""
        self._life = asyncio.get_running_loop().create_task(self._live())

    def cancel(self) -> None:
        """Stop at the user's wish; harmless after the end."""
        self._end(RunStopped())

    async def compute(self) -> None:
        """Make the answer. Raises what ends it early."""
        raise NotImplementedError

    async def concluded(self, finish: ChatFinish, error: dict[str, Any] | None) -> None:
        """Write the end of it, and its last event."""
        raise NotImplementedError

    async def close(self) -> None:
        """Wait for the end of a run that was cut: the server stops."""
        if self._life is not None:
            await asyncio.wait([self._life], timeout=3.0)

    async def _live(self) -> None:
        self._deaths = self._restarts()
        ticking = asyncio.create_task(self._tick())
        finish: ChatFinish = "stop"
        error: dict[str, Any] | None = None
        try:
            await self.while_here(self.compute())
            self.status = self.status or 200
            self.complete = True
        except RunStopped:
            finish, self.status = "stopped", 499
        except asyncio.CancelledError:  # the loop ends
            finish, self.status = "lost", 503
            raise
        except Exception as e:
            trouble = self.problem(e)
            finish = "lost" if isinstance(e, EngineClosed) and self.server.health.stopping else "failed"
            self.status, error = trouble.status, error_of(trouble)
        finally:
            ticking.cancel()
            self._note_deaths()
            self._logged()
            await self.concluded(finish, error)
            self.ended_at = time.monotonic()

    def _logged(self) -> None:
        """Write the line of what was computed, as a request has one, and begin another."""
        self.server.metrics.answered(self.route, self.status or 200)
        log_request(self)
        self.work, self.status, self.code = RequestWork(), 0, ""
        self.answer_id, self.started = secrets.token_hex(12), time.monotonic()

    def came(self) -> None:
        """Note that the model made something."""
        self._came += 1

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._note_deaths()
            if self._came == self._seen and (why := self.why()):
                self.events.fact("wait", why, brief=True)
            self._seen = self._came

    def _note_deaths(self) -> None:
        deaths = self._restarts()
        if deaths > self._deaths:
            self._deaths = deaths
            text = "The engine ended and was started again; the answer continues where it was."
            self.events.fact("note", {"code": "engine", "text": text})

    def _restarts(self) -> int:
        base = self.model.partition("+")[0]
        return sum(each.restarts for each in self.models.loaded() if each.name in (self.model, base))

    def prefill(self) -> tuple[int, int] | None:
        """How many tokens of the prompt are read, and how many there are; None where that is not known."""
        return None

    def why(self) -> dict[str, Any] | None:
        """Say what the run waits for; None where it waits for the model alone."""
        base = self.model.partition("+")[0]
        if (progress := self.loading(base)) is not None:
            return {"why": "engine" if self._came else "load", "done": progress[0], "of": progress[1]}
        if (read := self.prefill()) is not None and read[0]:
            return {"why": "prompt", "done": read[0], "of": read[1]}
        if self._came:
            return None
        stats = next((each.stats for each in self.models.loaded() if each.name == base), None)
        return {"why": "queue", **({"expected_s": round(stats.expected_wait_s, 2)} if stats else {})}


def error_of(trouble: Problem) -> dict[str, Any]:
    """Return an error as events and chats have it."""
    hint = trouble.extra.get("hint")
    return {"message": trouble.message, "code": trouble.code, **({"hint": hint} if hint else {})}


# --- the runs of a server: counted, found by their ids, kept for a while after their end ------------

CALLER_RUNS, ALL_RUNS = 16, 512  # in progress
KEPT_S = 600.0  # after the end
# Of text of ended runs, which their chats have: beyond, the oldest are forgotten sooner.
KEPT_UNITS = 128 << 20
SWEEP_S = 30.0


class Runs:
    """A part of the server: `server.part(Runs)`."""

    def __init__(self) -> None:
        self._runs: dict[str, ConsoleRun] = {}
        self._starting = Counter[str]()  # by caller: admitted, and their first lines are being written
        self._sweeping: asyncio.TimerHandle | None = None

    def admit(self, caller: str) -> None:
        """Raise Refused where the caller, or the server, has as many runs as it may."""
        running = [run for run in self._runs.values() if run.running]
        own = sum(run.caller == caller for run in running) + self._starting[caller]
        if own >= CALLER_RUNS:
            kind = caller.partition(" ")[0]
            raise _too_many(429, f"{own} answers of this {kind} are being made, the limit is {CALLER_RUNS}")
        if len(running) + self._starting.total() >= ALL_RUNS:
            raise _too_many(503, f"{len(running)} answers are being made, the limit is {ALL_RUNS}")

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Admit a run, and count it until it is started. Raises as `admit`."""
        self.admit(caller)
        self._starting[caller] += 1
        try:
            yield
        finally:
            self._starting[caller] -= 1
            if not self._starting[caller]:
                del self._starting[caller]

    def start(self, run: ConsoleRun) -> None:
        """Keep a run and let it begin."""
        self._runs[run.id] = run
        run.start()
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def get(self, id: str, folder: ChatFolder) -> ConsoleRun:
        """Return a run of this folder's chats; Refused (404) for others' as for those that never were."""
        run = self._runs.get(id)
        if run is None or run.folder.path != folder.path:
            message = "there is no such run, or it ended some time ago: its chat has the answer"
            raise Refused(404, message, code="no_run")
        return run

    def of(self, folder: ChatFolder, chat: str) -> list[str]:
        """Return the ids of a chat's runs in progress."""
        runs = (run for run in self._runs.values() if run.chat == chat and run.folder.path == folder.path)
        return [run.id for run in runs if not run.settled]

    async def close(self) -> None:
        """Wait for the ends of all runs, which were cut, and save what is not saved."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        unsettled = [run for run in self._runs.values() if not run.settled]
        for run in unsettled:
            run.cut()
        await asyncio.gather(*(run.close() for run in unsettled))

    def _sweep(self) -> None:
        now, held = time.monotonic(), 0
        for id, run in reversed(list(self._runs.items())):
            if run.ended_at is None or not run.settled:
                continue
            held += run.events.units
            if now - run.ended_at > KEPT_S or held > KEPT_UNITS:
                del self._runs[id]
        again = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep) if self._runs else None
        self._sweeping = again


def _too_many(status: int, message: str) -> Refused:
    return Refused(status, f"{message}; try again when one has ended", code="runs_too_many")


# --- what a run has said so far, as numbered events: any number of readers follow it, from any event on
# A reader holds no queue: it has the number of its last event, and takes what came after as one event for each text.
# So one that is slow, or comes again after a reload, costs the run nothing. Positions count UTF-16 units, as
# JavaScript's strings do.

TextKind = Literal["text", "thinking"]
JOINED = 4096  # pieces of a text after which they become one string: a piece alone has 50 bytes beside its characters


def units(text: str) -> int:
    """Return the length of `text` in UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


class _Fact:
    """An event that is one JSON value. `brief`: of no use once another came after it."""

    def __init__(self, number: int, kind: str, data: bytes, brief: bool) -> None:
        self.first = self.last = number
        self._kind, self._data, self._brief = kind, data, brief

    def after(self, number: int, newest: int) -> bytes:
        """Write the event; nothing for a brief one that is not the newest."""
        if self._brief and self.last != newest:
            return b""
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (self.last, self._kind.encode(), self._data)


class _Text:
    """Events that each add a piece to a text, with no other event between them."""

    def __init__(self, number: int, kind: TextKind, at: int) -> None:
        self.first, self.kind, self._at = number, kind, at
        self.seconds: float | None = None
        # Of the older pieces: their text, and where each ends in it.
        self._joined, self._ends = "", array("Q")
        self._pieces: list[str] = []

    @property
    def last(self) -> int:
        return self.first + len(self._ends) + len(self._pieces) - 1

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        if len(self._pieces) >= JOINED:
            end = len(self._joined)
            for each in self._pieces:
                end += len(each)
                self._ends.append(end)
            self._joined += "".join(self._pieces)
            self._pieces = []

    def after(self, number: int, newest: int) -> bytes:
        """Write what came after event `number` as one event."""
        told = max(number - self.first + 1, 0)  # pieces that the reader has
        old = len(self._ends)
        if told >= old:
            before = self._joined, *self._pieces[: told - old]
            text = "".join(self._pieces[told - old :])
        else:
            cut = self._ends[told - 1] if told else 0
            before = (self._joined[:cut],)
            text = self._joined[cut:] + "".join(self._pieces)
        at = self._at + sum(map(units, before))
        timed = b"" if self.seconds is None else b',"s":%.2f' % self.seconds
        data = b'{"at":%d,"text":%b%b}' % (at, msgspec.json.encode(text), timed)
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (self.last, self.kind.encode(), data)


class EventLog:
    """The events of one run. `last`: the number of the newest; `over`: no more will come."""

    def __init__(self) -> None:
        self.last, self.over = 0, False
        self.units = 0  # of all texts: what the log holds in memory
        self._parts: list[_Fact | _Text] = []
        self._firsts: list[int] = []  # their first numbers, for the search
        self._at: dict[TextKind, int] = {"text": 0, "thinking": 0}
        self._newest = (0, b"")  # the newest event alone as it is written: most readers have all before it
        self._waiting: set[asyncio.Future[None]] = set()

    def answer(self) -> None:
        """Let positions begin anew: another answer of the run begins."""
        self._at = {"text": 0, "thinking": 0}

    def text(self, kind: TextKind, piece: str, seconds: float | None = None) -> None:
        """Add a piece of an answer. `seconds`: spent thinking so far."""
        part = self._parts[-1] if self._parts else None
        if not isinstance(part, _Text) or part.kind != kind:
            part = _Text(self.last + 1, kind, self._at[kind])
            self._add(part)
        part.add(piece)
        part.seconds = seconds
        at, size = self._at[kind], units(piece)
        self._at[kind] = at + size
        self.units += size
        self.last += 1
        timed = b"" if seconds is None else b',"s":%.2f' % seconds
        data = b'{"at":%d,"text":%b%b}' % (at, msgspec.json.encode(piece), timed)
        self._newest = (self.last, b"id: %d\nevent: %b\ndata: %b\n\n" % (self.last, kind.encode(), data))
        self._wake()

    def fact(self, kind: str, data: object, *, brief: bool = False) -> None:
        """Add an event of any other kind."""
        self.last += 1
        part = _Fact(self.last, kind, msgspec.json.encode(data), brief)
        self._add(part)
        self._newest = (self.last, part.after(0, self.last))
        self._wake()

    def close(self) -> None:
        """Let the readers end once they have all."""
        self.over = True
        self._wake()

    def after(self, number: int) -> bytes:
        """Write what came after event `number`."""
        if number == self.last - 1:
            return self._newest[1]
        start = max(bisect_right(self._firsts, number) - 1, 0)
        return b"".join(part.after(number, self.last) for part in self._parts[start:] if part.last > number)

    async def beyond(self, number: int) -> None:
        """Wait until there is more than event `number`, or no more will come."""
        while self.last <= number and not self.over:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)

    def _add(self, part: _Fact | _Text) -> None:
        self._parts.append(part)
        self._firsts.append(part.first)

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
