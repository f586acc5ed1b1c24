"""What a run has said so far, as numbered events: any number of readers follow it, from any event on.

A reader holds no queue: it has the number of its last event, and takes what came after as one event for each text. So
one that is slow, or comes again after a reload, costs the run nothing. Positions count UTF-16 units, as JavaScript's
strings do. Knows texts and JSON; knows no model, no chat and no connection.
Path: ChatRun -> EventLog.text, EventLog.fact; the route of events -> EventLog.after -> EventStream
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right
from typing import Literal

import msgspec

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
        self._joined, self._ends = (
            "",
            array("Q"),
        )  # of the older pieces: their text, and where each ends in it
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
