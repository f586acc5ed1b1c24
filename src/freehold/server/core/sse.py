"""One stream to one client, with a sign of life while nothing happens.

Knows bytes and seconds; knows no protocol's events. The response begins late on purpose: an error before the first
event still gets its own status, unless ten silent seconds passed and a beat had to go out.
Path: Answering.stream -> EventStream.send -> HttpCall.body
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from freehold.server.core.call import HttpCall
from freehold.server.core.limits import Gone

CONTENT_TYPE = b"text/event-stream; charset=utf-8"  # server-sent events
COMMENT = b": keep-alive\n\n"  # which their readers leave out
PREFILL = b": prefill %d %d\n\n"  # tokens of the prompt that are read, and all; remote/http.py reads it
PREFILL_S = 1.0  # between two of them
HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold the events back
]


class EventStream:
    """Use in `async with`: the timer for beats runs inside. `beat` writes what a client reads over.

    `prefill`: tokens of the prompt that are read, and all of them; server-sent events tell it in a comment each second.
    """

    def __init__(
        self,
        call: HttpCall,
        content_type: bytes = CONTENT_TYPE,
        beat: Callable[[], bytes] = lambda: COMMENT,
        prefill: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        self._prefill = prefill if content_type == CONTENT_TYPE else lambda: None
        self._headers, self._beat = [(b"content-type", content_type), *HEADERS], beat
        self._call, self._lock = call, asyncio.Lock()
        self._every = call.server.keep_alive_s
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventStream:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(min(self._every, PREFILL_S), self._tick)
        self._call.server.metrics.streams += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()
        self._call.server.metrics.streams -= 1

    @property
    def begun(self) -> bool:
        return self._call.status != 0

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send whole events; waits while the client's buffers are full. Raises Gone for one that takes nothing."""
        async with self._lock:
            if self._call.complete:  # a beat that waited while the last event went out
                return
            if not self.begun:
                await self._call.head(200, self._headers)
            await self._call.body(data, more=more)

    def _tick(self) -> None:
        """Send a beat if nothing else went out, or the prompt's progress."""
        silent = time.monotonic() - self._call.taken_at
        read = self._prefill()
        every = self._every if read is None else min(self._every, PREFILL_S)
        if self._lock.locked():  # a client that is slow to take what was sent
            silent = every - PREFILL_S
        elif silent >= every:
            self._beating = self._loop.create_task(self._send_beat(PREFILL % read if read else self._beat()))
            silent = 0.0
        self._timer = self._loop.call_later(min(max(every - silent, 0.001), PREFILL_S), self._tick)

    async def _send_beat(self, data: bytes) -> None:
        with suppress(Gone):  # HttpCall.while_here sees the connection go, and ends the work
            await self.send(data)
