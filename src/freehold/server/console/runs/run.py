"""One answer being made for a caller, apart from any connection: its life from the start to the last event.

A run is a ServerCall as a request is: it counts among the server's calls, so a drain waits for it and a stop cuts it,
and its line in the log and in the metrics is written as theirs. Knows a caller, events and an engine's deaths; what is
computed is its kinds' (ChatRun, AgainRun). Path: Runs.start -> ConsoleRun -> EventLog
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from freehold.chats.folder import ChatFolder
from freehold.chats.types import ChatFinish
from freehold.errors import EngineClosed
from freehold.server.console.runs.events import EventLog
from freehold.server.core.call import HttpCall, ServerCall
from freehold.server.core.problems import Problem
from freehold.server.core.requestlog import log_request
from freehold.server.core.work import RequestWork

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
