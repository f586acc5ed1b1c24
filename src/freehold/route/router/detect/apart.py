"""Reads long texts outside the server's process, so that no text of one client holds up the others.

A thread would not do: checks are Python and hold the interpreter's lock, and one operation of a string of megabytes
holds it for long. So a text goes to one of MOST processes in slices, and the event loop has a turn after each. A key
uses one process at a time; keys that wait take turns. Every failure is a NotRead, which sets the labels.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from freehold.base.sandbox.loop_child import LoopChild
from freehold.base.serving import EmbedJob, Job
from freehold.route.providers.texts import Part, parts_of
from freehold.route.router.detect.detectors import Finding
from freehold.route.router.detect.reader import SECONDS, TAGS, TEXT

MODULE = "freehold.route.router.detect.reader"
MOST = 2  # processes
WALL_S = 5 + 4 * SECONDS  # the child's clock counts processor time; this one ends a child that does not run
SLICE = 1 << 16  # characters that are encoded in one step, some 50 us


class NotRead(Exception):
    """A text was not read to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class Sought:
    """What a sieve looks for."""

    patterns: tuple[str, ...]
    kinds: tuple[str, ...]


class KeyTurns:
    """Lets `most` run at a time, one of each key, and keys that wait one after the other."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._running: set[str] = set()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Wait for a turn of `key`, and give it back at the end."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        self._next()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._running.discard(key)
                self._free += 1
            self._next()

    def _next(self) -> None:
        for key in [*self._waiting]:
            waiting = self._waiting[key]
            while waiting and waiting[0].done():  # cancelled
                waiting.popleft()
            if waiting and self._free and key not in self._running:
                self._free -= 1
                self._running.add(key)
                waiting.popleft().set_result(None)
                self._waiting.move_to_end(key)
            if not waiting:
                del self._waiting[key]


class LongTexts:
    """The reading processes of one event loop; close them when done."""

    def __init__(self, most: int = MOST) -> None:
        self._turns = KeyTurns(most)
        self._idle: list[LoopChild] = []

    async def find(self, wanted: Sought, work: Job | EmbedJob, key: str) -> set[Finding]:
        """Return what is in a request's texts, as Sieve.find does; `key`: whose it is. Raises NotRead."""
        async with self._turns.of(key):
            reply = await self._tried(wanted, work) or await self._tried(wanted, work)
        if reply is None:
            raise NotRead("the process that reads long texts ended twice")
        if "found" not in reply:
            raise NotRead(str(reply["unread"]))
        return {Finding(*each) for each in reply["found"]}

    def close(self) -> None:
        """End the processes that wait for work; the next text starts another."""
        while self._idle:
            self._idle.pop().kill()

    async def _tried(self, wanted: Sought, work: Job | EmbedJob) -> dict[str, Any] | None:
        """Let a process read; None if it ended for a reason that is not the text's."""
        try:
            reader = await self._take()
        except OSError as e:
            raise NotRead(f"no process could be started to read it: {e.strerror}") from e
        try:
            reply = json.loads(await reader.ask(_frames(wanted, parts_of(work)), WALL_S))
        except OSError as e:  # TimeoutError is one
            code = await asyncio.to_thread(reader.end)
            if isinstance(e, TimeoutError) or -code == signal.SIGPROF:
                raise NotRead(f"it takes longer than {SECONDS:g} s to read") from None
            if reader.blamed(code):
                raise NotRead("the process that read it died") from None
            return None
        except BaseException:  # cancelled: its next reply would be this one's
            reader.kill()
            raise
        if reply["last"]:
            reader.kill()
        else:
            self._idle.append(reader)
        return reply

    async def _take(self) -> LoopChild:
        """Return a process that waits for work, or a new one. Raises OSError."""
        while self._idle:
            reader = self._idle.pop()
            if reader.is_there():
                return reader
            reader.kill()
        return await asyncio.to_thread(LoopChild, MODULE)


def _frames(wanted: Sought, parts: Iterable[Part]) -> Iterator[bytes]:
    """Yield what is sought, then parts in slices; the tag of a slice is small where the part ends with it."""
    yield json.dumps({"patterns": wanted.patterns, "kinds": wanted.kinds}).encode()
    for part in parts:
        tag, text = (TEXT, part) if isinstance(part, str) else (TAGS[part.kind], part.body)
        for start in range(0, max(len(text), 1), SLICE):
            last = start + SLICE >= len(text)
            yield (tag if last else tag.upper()) + text[start : start + SLICE].encode(
                "utf-8", "surrogatepass"
            )
