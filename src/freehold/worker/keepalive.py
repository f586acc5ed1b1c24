"""The time after which an idle model leaves memory.

Knows seconds and one timer; knows no model.
Path: EngineHandle.start -> KeepAlive.used; last job ended -> KeepAlive.idle -> EngineHandle.unload
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

KEEP_ALIVE_S = 300.0


class KeepAlive:
    """Calls `expired` when a model has been idle for as long as its latest request asked, or `default_s`."""

    def __init__(self, default_s: float, expired: Callable[[], None]) -> None:
        self._default_s = self._seconds = default_s
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.expires_at: float | None = None  # time.time() of the unloading; None: busy, or never
        self.used_at = self._loop.time()

    def used(self, seconds: float | None) -> None:
        """Note a request; `seconds`: its keep_alive, None for the default, negative for ever."""
        self.used_at = self._loop.time()
        self._seconds = self._default_s if seconds is None else seconds
        self.cancel()

    def idle(self) -> None:
        """Start the timer."""
        self.used_at = self._loop.time()
        self.cancel()
        if 0 <= self._seconds < math.inf:
            self.expires_at = time.time() + self._seconds
            self._timer = self._loop.call_later(self._seconds, self._expired)

    def cancel(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.expires_at = None
