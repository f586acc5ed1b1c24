"""Which targets are left alone for a while, because they failed several times in a row.

After the cooldown one request tries such a target, and its outcome decides for all. Knows names and seconds; knows no
request and no cause. One process's own: two servers learn of a fault separately.
Path: routing.py -> Breakers.why_not; attempts.py -> Breakers.begin/failed/answered/dropped
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from freehold.router.gateway import BreakerLimits


@dataclass(slots=True)
class TargetHealth:
    """What is known of one target."""

    failures: int = 0  # in a row
    until: float = 0.0  # it is left alone until then; 0: it is not
    trying: bool = False  # one request tries it after its cooldown


class Breakers:
    """The health of every target, by name; it outlives a reload of the file."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._targets: dict[str, TargetHealth] = {}
        self._clock = clock

    def why_not(self, target: str) -> tuple[str, float]:
        """Return why a target is left alone, and for how many seconds; "" where it is not."""
        health = self._targets.get(target)
        if health is None or not health.until:
            return "", 0.0
        left = health.until - self._clock()
        if left > 0:
            return f"failed {health.failures} times in a row; it is asked again in {left:.0f} s", left
        if health.trying:
            return f"failed {health.failures} times in a row; one request is trying it now", 1.0
        return "", 0.0

    def begin(self, target: str) -> None:
        """Note that a request asks the target: the one that tries it, if its cooldown has passed."""
        health = self._targets.get(target)
        if health is not None and health.until:
            health.trying = True

    def failed(self, target: str, limits: BreakerLimits, *, at_once: bool = False) -> None:
        """Count a failure; `at_once`: the next request would fail too, whatever the count."""
        health = self._targets.setdefault(target, TargetHealth())
        health.failures += 1
        if at_once or health.trying or health.failures >= limits.failures:
            health.until = self._clock() + limits.cooldown_s
        health.trying = False

    def good(self, target: str) -> None:
        """Note that the request which tries a target has a good answer: others may ask it, too."""
        health = self._targets.get(target)
        if health is not None:
            health.until, health.trying = 0.0, False

    def answered(self, target: str) -> None:
        """Forget the failures of a target whose answer is whole."""
        self._targets.pop(target, None)

    def dropped(self, target: str) -> None:
        """Note an attempt that says nothing of the target, such as one whose client left."""
        health = self._targets.get(target)
        if health is not None:
            health.trying = False
