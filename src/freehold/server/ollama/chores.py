"""Work on the disk that takes long: in a thread of its own, its progress a line of JSON a step.

Knows threads and lines; knows no route. A thread ends at its next event once the client is gone: what
it fetched is kept, and the same request continues from there.
Path: pull, create -> run -> Store.pull, create.make -> tell -> EventStream
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from freehold.server.core.call import HttpCall
from freehold.server.core.limits import Gone
from freehold.server.core.problems import Refused, problem, without_paths
from freehold.server.core.sse import EventStream
from freehold.server.ollama.wording import NDJSON, as_here, ollama_error
from freehold.store.contract import Event, Finished, Note, Planned, Progress

MOST = 4  # at a time: each has a thread and connections of its own
EVERY_S = 0.1  # between lines of progress; a download tells of every piece
WARNING = "warning: "  # begins a line that tells of what was not done
Line = dict[str, Any]
Tell = Callable[[Line], None]
Work = Callable[[Tell], None]


class _Stopped(Exception):
    """The client has disconnected."""


async def run(call: HttpCall, name: str, work: Work, *, stream: bool, first: Line) -> None:
    """Run `work` in a thread and answer with its lines, then with success; `first` is the beat until the next one."""
    if call.server.chores >= MOST:
        raise Refused(
            503, f"{MOST} downloads are in progress; ask again later", headers=((b"retry-after", b"10"),)
        )
    call.server.chores += 1
    chore = _Chore(work, first)
    try:
        if stream:
            await _streamed(call, name, chore)
        else:
            await call.while_here(chore.done(None))
            await call.answer({"status": "success", "freehold": {"warnings": chore.warnings}})
    finally:
        call.server.chores -= 1
        chore.stop()


async def _streamed(call: HttpCall, name: str, chore: _Chore) -> None:
    async with EventStream(call, NDJSON, lambda: _line(chore.latest)) as events:

        async def send(line: Line) -> None:
            await events.send(_line(line))

        try:
            await call.while_here(chore.done(send))
            last = _line({"status": "success"})
        except Gone:
            raise
        except Exception as e:
            if not events.begun:
                raise
            last = ollama_error(as_here(problem(e), name)) + b"\n"
        await events.send(last, more=False)


class _Chore:
    """One piece of work: its thread, and the lines to send."""

    def __init__(self, work: Work, first: Line) -> None:
        self.latest = first
        self._work, self._lines, self._stopped = work, [first], False
        self.warnings: list[str] = []  # for an answer that shows no lines
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._end.add_done_callback(lambda end: end.cancelled() or end.exception())

    async def done(self, send: Callable[[Line], Any] | None) -> None:
        """Start, send lines as they come, and return at the work's end; raise what it raised."""
        threading.Thread(target=self._run, name="freehold-chore", daemon=True).start()
        while not (self._end.done() and not self._lines):
            await self._news.wait()
            self._news.clear()
            if self._end.done() and self._end.exception():
                break
            lines, self._lines = self._lines, []
            for line in lines if send else ():
                self.latest = line
                await send(line)  # type: ignore[misc]
            if not self._end.done():
                await asyncio.sleep(EVERY_S)
        await self._end

    def stop(self) -> None:
        """Let the thread end at its next event."""
        self._stopped = True

    def _run(self) -> None:
        try:
            self._work(self._tell)
        except BaseException as e:
            self._call(self._ended, e)
        else:
            self._call(self._ended, None)

    def _tell(self, line: Line) -> None:
        if self._stopped:
            raise _Stopped
        self._call(self._add, line)

    def _call(self, what: Callable[[Any], None], value: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, value)

    def _add(self, line: Line) -> None:
        """Keep a line; of two about the same file only the later one counts."""
        if line["status"].startswith(WARNING):
            self.warnings.append(line["status"].removeprefix(WARNING))
        if self._lines and "completed" in line and self._lines[-1].get("status") == line["status"]:
            self._lines.pop()
        self._lines.append(line)
        self._news.set()

    def _ended(self, e: BaseException | None) -> None:
        if e is None:
            self._end.set_result(None)
        else:
            self._end.set_exception(e)
        self._news.set()


def report(event: Event, tell: Tell) -> None:
    """Pass on an event of a pull as lines."""
    for line in lines_of(event):
        tell(line)


def lines_of(event: Event) -> list[Line]:
    """Return an event of a pull as lines of this protocol."""
    if isinstance(event, Planned):
        return [{"status": "pulling manifest"}]
    if isinstance(event, Progress):
        line: Line = {"status": f"pulling {event.sha256[:12] or event.file}"}
        if event.sha256:
            line["digest"] = f"sha256:{event.sha256}"
        if event.total:
            line["total"] = event.total
        return [{**line, "completed": event.done}]
    if isinstance(event, Note):
        return [{"status": without_paths(event.text)}]
    if isinstance(event, Finished) and event.fetched:
        return [{"status": "verifying sha256 digest"}, {"status": "writing manifest"}]
    return []


def _line(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"
