"""How a server starts its engines."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from freehold.base.types import ImageBudget, KvType, ServedModelOptions

# The time after which an idle model leaves memory.
KEEP_ALIVE_S = 300.0


class KeepAlive:
    """Calls `expired` when a model has been idle for as long as its latest request asked, or `default_s`."""

    def __init__(self, default_s: float, expired: Callable[[], None]) -> None:
        self._default_s = self._seconds = default_s
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        # A request moves the deadline and leaves the timer, which looks again when it is due: two timers a request
        # cost more than reading it.
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf  # of the loop's clock
        self.expires_at: float | None = None  # time.time() of the unloading; None: busy, or never
        self.used_at = self._loop.time()

    def used(self, seconds: float | None) -> None:
        """Note a request; `seconds`: its keep_alive, None for the default, negative for ever."""
        self.used_at = self._loop.time()
        self._seconds = self._default_s if seconds is None else seconds
        self._deadline, self.expires_at = math.inf, None

    def idle(self) -> None:
        """Count from now."""
        self.used_at = self._loop.time()
        if not 0 <= self._seconds < math.inf:
            self._deadline, self.expires_at = math.inf, None
            return
        self._deadline, self.expires_at = self.used_at + self._seconds, time.time() + self._seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._deadline:
            self._expired()
        elif self._deadline < math.inf:
            self._timer = self._loop.call_at(self._deadline, self._look)

    def cancel(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.expires_at = None
        self._deadline = math.inf


HUNG_S = 120.0  # without a sign while there is work. The longest step is a second; a swapping machine is slow


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of all engines of a server; None leaves the choice to the engine."""

    context: int | None = None
    kv_type: KvType = "f16"
    threads: int | None = None
    speculate: bool = True
    allow_paging: bool = False
    eyes: str = "lazy"  # as ModelOptions
    image_tokens: ImageBudget | None = None
    draft: str | None = None  # MODEL that drafts; for the models of its family only
    adapters: Mapping[str, Mapping[str, Path]] = field(
        default_factory=dict
    )  # MODEL -> name -> file or folder
    disk: Path | None = None  # folder for cached prefixes that survive a restart
    cache_bytes: int | None = None  # of each model's cache
    max_models: int | None = None  # loaded at once
    keep_alive_s: float = KEEP_ALIVE_S
    hung_s: float = HUNG_S
    engine: ServedModelOptions = field(
        default_factory=ServedModelOptions
    )  # target_itl_s, limits of the queue
