"""Liveness: a server is stuck while an engine has work and makes no steps.

vLLM's /health says 200 while its engine hangs; here progress is watched, once a second, by the step counters.
Knows stats and seconds; knows no route. Path: app lifespan -> Health.watch; GET /health, /ready -> verdict, ready
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from freehold.serving import LoadedInfo, ModelManager

STALL_S = 60.0  # the longest step we know of, a chunk of prompt on a loaded two-core guest, takes under 5

Progress = tuple[int, int]  # bytes loaded, of how many: an engine that died may take minutes to load again
Mark = tuple[int, Progress | None]  # steps made, and the progress of a load


class Health:
    """Watches the loaded models' step counters."""

    def __init__(
        self, models: ModelManager, stall_s: float = STALL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._models, self._stall_s, self._clock = models, stall_s, clock
        self._seen: dict[
            str, tuple[Mark, float]
        ] = {}  # model -> (mark, time of its last progress or idleness)
        self.stopping = False
        self.preload: dict[str, str] = {}  # models that /ready waits for -> what became of them so far

    async def watch(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(1)

    def look(self) -> None:
        """Note every model's steps."""
        now, loading = self._clock(), self._models.loading()
        self._seen = {
            each.name: self._noted(each, loading.get(each.name), self._seen.get(each.name), now)
            for each in self._models.loaded()
        }

    def stuck(self) -> Sequence[str]:
        """Return a sentence for each engine that has work and made no step for `stall_s`."""
        self.look()
        now = self._clock()
        stood = ((name, now - since) for name, (_, since) in self._seen.items())
        return [
            f"{name} has work and made no step for {s:.0f} seconds" for name, s in stood if s > self._stall_s
        ]

    def not_ready(self) -> str:
        """Return why new requests should go elsewhere; "" when they may come."""
        if self.stopping:
            return "the server is stopping"
        if self.preload:
            return "; ".join(f"{name}: {state}" for name, state in self.preload.items())
        return next(iter(self.stuck()), "")

    def _noted(
        self, each: LoadedInfo, loading: Progress | None, before: tuple[Mark, float] | None, now: float
    ) -> tuple[Mark, float]:
        # Jobs as counted here: the reports of a hung engine may be wrong.
        mark, working = (each.stats.steps, loading), each.in_flight > 0
        stands = working and before is not None and before[0] == mark
        return (mark, before[1] if stands and before else now)
