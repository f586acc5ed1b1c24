"""The servers of tools that run for this process, one for each chat that uses it.

Two chats never share a server: its state may hold what one of them sent. One that is idle ends after five minutes, and
beyond eight the one that was used longest ago, unless it is in a call. Knows connections; knows no tool.
Path: RunTools -> ToolServers.connected -> ToolConnection; serve.py -> ToolServers.close
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.errors import FreeholdError, Overloaded, UsageError
from freehold.tools.mcp.configured import ToolServer, tool_servers
from freehold.tools.mcp.connection import ToolConnection
from freehold.tools.mcp.pinning import PinnedTool, pinned

IDLE_S = 300.0
MOST, STARTING = 8, 4  # processes: that run, and that start beside them
ROOM_S = 30.0  # a start waits so long for one that is in no call
_LOOK_S = 20.0


@dataclass(frozen=True, slots=True)
class SeenServer:
    """What came of a server's last listing."""

    tools: tuple[PinnedTool, ...] = ()
    left_out: tuple[str, ...] = ()
    trouble: str = ""


class ToolServers:
    """All that is configured, and what of it runs. `table` returns `[mcp]` as it is now."""

    def __init__(self, table: Callable[[], Mapping[str, Any]], home: Path, idle_s: float = IDLE_S) -> None:
        self._table, self.home, self._idle_s = table, home, idle_s
        self.seen: dict[str, SeenServer] = {}  # by the server's name
        self._running: dict[tuple[str, str], ToolConnection] = {}
        self._starting: dict[tuple[str, str], asyncio.Lock] = {}
        self._places = asyncio.Semaphore(STARTING)
        self._sweeper: asyncio.Task[None] | None = None

    def configured(self) -> dict[str, ToolServer]:
        """Return the servers by name. Raises UsageError for what is wrong in the configuration."""
        return tool_servers(self._table())

    def server(self, name: str) -> ToolServer:
        """Return a server. Raises UsageError if none has this name."""
        servers = self.configured()
        if name not in servers:
            known = f"configured: {', '.join(servers)}" if servers else "freehold mcp add NAME makes one"
            raise UsageError(f"no server of tools is called {name[:60]!r}", known)
        return servers[name]

    def for_key(self, key: str | None) -> dict[str, ToolServer]:
        """Return the servers that a key may use; None: the owner, who may use all."""
        return {n: s for n, s in self.configured().items() if key is None or key in s.keys}

    def running(self) -> dict[str, int]:
        """Return how many of each server run."""
        names = [name for (_, name), connection in self._running.items() if connection.alive]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    def lines(self, name: str) -> list[str]:
        """Return what the server of a name wrote last for people."""
        stderr = [c.lines for (_, each), c in self._running.items() if each == name]
        return stderr[-1] if stderr else []

    async def listed(self, user: str, name: str) -> list[PinnedTool]:
        """Return the tools of a server as it describes them now, and remember them for lists. Raises as `connected`."""
        try:
            connection = await self.connected(user, name)
            tools, left_out = pinned(connection.server, await connection.listed())
        except FreeholdError as e:
            self.seen[name] = SeenServer(trouble=e.message)
            raise
        self.seen[name] = SeenServer(tuple(tools), tuple(left_out))
        return tools

    async def connected(self, user: str, name: str) -> ToolConnection:
        """Return the server of a chat, started if it does not run. Raises as ToolConnection.start.

        `user`: a key and a chat, which share its state. A server whose configuration has changed is started anew.
        """
        key = (user, name)
        async with self._starting.setdefault(key, asyncio.Lock()):
            server = self.server(name)
            connection = self._running.get(key)
            if connection is not None and (not connection.alive or connection.server != server):
                del self._running[key]
                await connection.close(now=True)
                connection = None
            if connection is None:
                connection = self._running[key] = await self._started(server)
                self._sweep()
            connection.used_at = time.monotonic()
            return connection

    async def _started(self, server: ToolServer) -> ToolConnection:
        """Start a server, of which few start at once, and make room for it."""
        async with self._places:
            connection = ToolConnection(server)
            try:
                await connection.start()
                await self._make_room()
            except BaseException:
                await asyncio.shield(connection.close(now=True))
                raise
            return connection

    async def release(self, user: str) -> None:
        """End the servers of a chat."""
        for key in [key for key in self._starting if key[0] == user]:
            del self._starting[key]
            if (connection := self._running.pop(key, None)) is not None:
                await connection.close()

    async def close(self) -> None:
        """End all of them, and wait until they are gone."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        running, self._running = list(self._running.values()), {}
        await asyncio.gather(*(connection.close(now=True) for connection in running), return_exceptions=True)

    async def _make_room(self) -> None:
        """End the one that was used longest ago, once one is in no call. Raises Overloaded after ROOM_S."""
        until = time.monotonic() + ROOM_S
        while len(self._running) >= MOST:
            idle = [key for key, each in self._running.items() if not each.calls]
            if idle:
                oldest = min(idle, key=lambda key: self._running[key].used_at)
                self._starting.pop(oldest, None)
                await self._running.pop(oldest).close(f"more than {MOST} servers ran", now=True)
            elif time.monotonic() > until:
                raise Overloaded(
                    f"all {MOST} servers of tools that may run at once have been in calls for {ROOM_S:g} s",
                    "ask again when other answers with tools have ended",
                )
            else:
                await asyncio.sleep(0.05)

    def _sweep(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep_idle(), name="mcp idle")

    async def _sweep_idle(self) -> None:
        while self._running:
            await asyncio.sleep(min(_LOOK_S, self._idle_s / 2))
            since = time.monotonic() - self._idle_s
            for key in [key for key, each in self._running.items() if each.used_at < since or not each.alive]:
                self._starting.pop(key, None)
                await self._running.pop(key).close()
