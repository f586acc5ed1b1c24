"""Work that outlives the request that began it: rows of clients that left, shadows.

Knows tasks alone. Path: stream.py, shadow.py -> Background.shielded/begin; directory.py -> Background.close
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """The tasks of one server that no request waits for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """Start work; a reference is kept until it ends."""
        task = asyncio.create_task(work, name=name or None)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def shielded(self, work: Coroutine[Any, Any, Any]) -> None:
        """Wait for work that is finished even where the caller is cancelled while it waits."""
        await asyncio.shield(self.begin(work))

    async def settled(self, name: str = "") -> None:
        """Wait for the work called `name`, or for all of it."""
        while waiting := [task for task in self._tasks if not name or task.get_name() == name]:
            await asyncio.gather(*waiting, return_exceptions=True)

    async def close(self, cancelled: str) -> None:
        """Cancel the work called `cancelled`, and wait for all."""
        for task in list(self._tasks):
            if task.get_name() == cancelled:
                task.cancel()
        await self.settled()
