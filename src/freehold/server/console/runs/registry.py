"""The runs of a server: counted, found by their ids, kept for a while after their end.

Knows callers, folders of chats and times; knows no model. Path: the routes of runs -> Runs; Doors.open -> Runs.close
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from freehold.server.core.problems import Refused

if TYPE_CHECKING:
    from freehold.chats.folder import ChatFolder
    from freehold.server.console.runs.run import ConsoleRun

CALLER_RUNS, ALL_RUNS = 16, 512  # in progress
KEPT_S = 600.0  # after the end
KEPT_UNITS = (
    128 << 20
)  # of text of ended runs, which their chats have: beyond, the oldest are forgotten sooner
SWEEP_S = 30.0


class Runs:
    """A part of the server: `server.part(Runs)`."""

    def __init__(self) -> None:
        self._runs: dict[str, ConsoleRun] = {}
        self._starting: Counter[str] = (
            Counter()
        )  # by caller: admitted, and their first lines are being written
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
            raise Refused(
                404, "there is no such run, or it ended some time ago: its chat has the answer", code="no_run"
            )
        return run

    def of(self, folder: ChatFolder, chat: str) -> list[str]:
        """Return the ids of a chat's runs in progress."""
        return [run.id for run in self._runs.values() if not run.settled and _is_of(run, folder, chat)]

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


def _is_of(run: ConsoleRun, folder: ChatFolder, chat: str) -> bool:
    return run.chat == chat and run.folder.path == folder.path


def _too_many(status: int, message: str) -> Refused:
    return Refused(status, f"{message}; try again when one has ended", code="runs_too_many")
