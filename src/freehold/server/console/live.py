"""The engines at work, twice a second while they are looked at: streams, queues, latencies, cache, memory, deaths.

One task takes one look for all viewers and ends with the last of them; without a viewer nothing is computed. Figures
are those of /metrics: the engines' latest stats, and the histograms that answers fill. Knows who may see what; knows no
engine process and asks none. Path: route -> live -> LiveFeed.watch -> look.py
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from freehold.server.console.look import Looks
from freehold.server.core.call import HttpCall, Server
from freehold.server.core.sse import EventStream

EVERY_S = 0.5
ALL, OWNER = " all", " owner"  # viewers that see every stream; a key's name has no blank


class LiveFeed:
    """What viewers share: the latest look, in the bytes of each kind of viewer."""

    def __init__(self, server: Server) -> None:
        self._looks = Looks(server)
        self._viewers: dict[object, str] = {}  # each with the kind that it is
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Condition()
        self._events: dict[str, bytes] = {}
        self._number = 0

    @asynccontextmanager
    async def watch(self, kind: str) -> AsyncIterator[object]:
        """Count a viewer; the looks begin with the first."""
        viewer = object()
        self._viewers[viewer] = kind
        if self._task is None:
            self._events = {}  # of a time that is over
            self._task = asyncio.create_task(self._look())
        try:
            yield viewer
        finally:
            del self._viewers[viewer]
            if not self._viewers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def next(self, viewer: object, after: int) -> tuple[int, bytes]:
        """Return the number and the event of the first look after number `after`; what came between is skipped."""
        kind = self._viewers[viewer]
        async with self._ready:
            while self._number <= after or kind not in self._events:
                await self._ready.wait()
            return self._number, self._events[kind]

    async def _look(self) -> None:
        self._looks.begin()
        while True:
            began = time.monotonic()
            self._number += 1
            self._events = self._snapshot()
            async with self._ready:
                self._ready.notify_all()
            await asyncio.sleep(max(EVERY_S - (time.monotonic() - began), EVERY_S / 2))

    def _snapshot(self) -> dict[str, bytes]:
        """Take a look and write it for each kind of viewer; no token is passed on meanwhile."""
        look, events = self._looks.take(), {}
        for kind in set(self._viewers.values()):
            key = None if kind in (ALL, OWNER) else kind
            data = msgspec.json.encode(look.seen_by(key, owner=kind == OWNER))
            events[kind] = b"id: %d\nevent: state\ndata: %b\n\n" % (self._number, data)
        return events


async def live(call: HttpCall) -> None:
    """Stream the state of the engines as events `state`, two a second, until the viewer leaves."""
    server = call.server
    feed = server.part(LiveFeed)
    if feed is None:
        feed = server.parts[LiveFeed] = LiveFeed(server)
    async with EventStream(call) as events:

        async def follow() -> None:
            async with feed.watch(_kind(call)) as viewer:
                number = 0
                while True:
                    number, event = await feed.next(viewer, number)
                    if not call.admitted(used=True):  # a hidden page closes its stream
                        break
                    await events.send(event)
            await events.send(b"", more=False)

        await call.while_here(follow())


def _kind(call: HttpCall) -> str:
    if call.owner:
        return OWNER
    return ALL if call.key is None or call.key.kind == "admin" else call.key.name
