"""Autoscaling as a policy that the simulator tries: how many replicas are wanted, looked at again and again.

Knows requests, busy seconds and the clock of the trace; starts nothing. Path: simulation.simulate -> Autoscaling.wanted
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from freehold.errors import UsageError


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Replicas by what each has: `queue` outstanding requests, or `utilisation`, the busy share of its time."""

    least: int
    most: int
    queue: float = 0.0
    utilisation: float = 0.0
    every_s: float = 15.0
    start_s: float = 120.0  # until a new replica answers; it is paid for from the start
    settle_s: float = 300.0  # it takes fewer only where no look in so long wanted more

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(f"{self.least} to {self.most} replicas are not a range", "give --replicas 1..8")
        if (self.queue > 0) == (self.utilisation > 0) or self.utilisation > 1:
            raise UsageError(
                "autoscaling has one target: outstanding requests a replica, or the busy share of its time",
                "such as --autoscale queue=16 or --autoscale utilisation=0.7",
            )
        if self.every_s <= 0 or self.start_s < 0 or self.settle_s < 0:
            raise UsageError("autoscaling looks every few seconds, and starts take 0 s or more")

    def wanted(self, running: int, outstanding: int, busy: float) -> int:
        """Return how many replicas are wanted; `busy`: busy seconds of all, over the seconds since the last look."""
        need = outstanding / self.queue if self.queue else busy / self.utilisation
        # A replica that is always busy says nothing of how much more is waiting.
        if self.utilisation and running and busy >= 0.99 * running:
            need = max(need, running + 1)
        return min(max(math.ceil(need - 1e-9), self.least), self.most)
