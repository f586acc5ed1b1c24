"""Writes a run to its chat, in the order in which things happened, behind the run's back.

The run never waits for the disk: lines queue here, a growing text as one, and go out at least every second. What cannot
be written stays queued and is tried again, so that a disk that is full for a while costs nothing that was said.
Knows lines of a chat; knows no model. Path: ChatRun -> RunSaver.grow, RunSaver.put -> ChatWriter
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from freehold.chats.writer import ChatWriter
from freehold.errors import FreeholdError

SAVE_S = 0.5  # between two writes of an answer that grows
AGAIN_S = 1.0  # after a write that failed
_log = logging.getLogger("freehold.server")

Line = Callable[[ChatWriter], object]  # writes one line, or raises and has written nothing


@dataclass(slots=True)
class _Growth:
    """What an answer grew by since the last write."""

    id: str
    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)

    def __call__(self, writer: ChatWriter) -> None:
        writer.more(self.id, text="".join(self.text), thinking="".join(self.thinking))


class RunSaver:
    """The lines of one run that are still to be written. `report` hears of a disk that fails, and of its recovery."""

    def __init__(self, writer: ChatWriter, report: Callable[[FreeholdError | None], None]) -> None:
        self._writer, self._report = writer, report
        self._lines: deque[Line] = deque()
        self._growth: _Growth | None = None  # the last line, while it may grow
        self._writing = asyncio.Lock()
        self._task = asyncio.get_running_loop().create_task(self._keep())
        self._failing: FreeholdError | None = None
        self._ended = False

    @property
    def saved(self) -> bool:
        """Whether nothing is left to write."""
        return not self._lines

    def grow(self, id: str, text: str, thinking: str) -> None:
        """Note what an answer grew by."""
        if self._growth is None or self._growth.id != id:
            self._growth = _Growth(id)
            self._lines.append(self._growth)
        if text:
            self._growth.text.append(text)
        if thinking:
            self._growth.thinking.append(thinking)

    def put(self, line: Line) -> None:
        """Append a line after all that came before."""
        self._growth = None
        self._lines.append(line)

    async def flush(self) -> bool:
        """Write what is queued; return whether all of it is written."""
        async with self._writing:
            self._growth = None  # it is being written: what comes now is a line of its own
            batch = list(self._lines)
            done, trouble = await asyncio.to_thread(self._write, batch)
            for _ in range(done):
                self._lines.popleft()
        if (trouble is None) != (self._failing is None):
            self._report(trouble)
        self._failing = trouble
        return not self._lines

    def _write(self, batch: list[Line]) -> tuple[int, FreeholdError | None]:
        for done, line in enumerate(batch):
            try:
                line(self._writer)
            except FreeholdError as e:
                return done, e
            except Exception as e:  # a line that cannot be written must not keep those after it
                _log.exception("a line of chat %s was left out: %s", self._writer.chat, e)
        return len(batch), None

    async def _keep(self) -> None:
        while not (self._ended and self.saved):
            await asyncio.sleep(AGAIN_S if self._failing else SAVE_S)
            if self._lines:
                await self.flush()
        self._writer.close()

    async def end(self) -> bool:
        """Write the rest now; what fails is tried again until it is written. Return whether all of it is."""
        self._ended = True
        return await self.flush()

    async def written(self) -> None:
        """Wait until everything is written; after `end`."""
        await asyncio.shield(self._task)

    async def abandon(self) -> None:
        """Try once more, and stop: the server ends."""
        self._task.cancel()
        if self._lines:
            await self.flush()
        self._writer.close()
