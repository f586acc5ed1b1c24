"""How targets are: which are left alone for a while, as they failed several times in a row, and which are busy.

After the cooldown one request tries such a target, and its first token decides for all: those that come meanwhile
wait for it, where they have no other target. Knows names and seconds; knows no request and no cause. One process's
own: two servers learn of a fault separately.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from freehold.route.router.gateway import BreakerLimits, GatewayModel


@dataclass(slots=True)
class TargetHealth:
    """What is known of one target."""

    failures: int = 0  # in a row
    until: float = 0.0  # it is left alone until then; 0: it is not
    trying: asyncio.Event | None = None  # one request tries it after its cooldown; set once that is decided

    def decided(self) -> None:
        """Let those that wait for the request which tries the target look again."""
        if self.trying is not None:
            self.trying.set()
            self.trying = None


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
        return "", 0.0

    async def turn(self, target: str, wait_s: float) -> tuple[str, float]:
        """Return why a target is left alone, as `why_not` does, once no other request tries it.

        Waits `wait_s` at most. The caller begins at once: a request between would try the target as well.
        """
        until = asyncio.get_running_loop().time() + wait_s
        while (health := self._targets.get(target)) is not None and (tried := health.trying) is not None:
            try:
                async with asyncio.timeout_at(until):
                    await tried.wait()
            except TimeoutError:
                return f"failed {health.failures} times in a row; one request is trying it now", 1.0
        return self.why_not(target)

    def begin(self, target: str) -> None:
        """Note that a request asks the target: the one that tries it, if its cooldown has passed."""
        health = self._targets.get(target)
        if health is not None and health.until and health.trying is None:
            health.trying = asyncio.Event()

    def failed(self, target: str, limits: BreakerLimits, *, at_once: bool = False) -> None:
        """Count a failure; `at_once`: the next request would fail too, whatever the count."""
        health = self._targets.setdefault(target, TargetHealth())
        health.failures += 1
        if at_once or health.trying is not None or health.failures >= limits.failures:
            health.until = self._clock() + limits.cooldown_s
        health.decided()

    def good(self, target: str) -> None:
        """Note that the request which tries a target has a good answer: others may ask it, too."""
        health = self._targets.get(target)
        if health is not None:
            health.until = 0.0
            health.decided()

    def answered(self, target: str) -> None:
        """Forget the failures of a target whose answer is whole."""
        health = self._targets.pop(target, None)
        if health is not None:
            health.decided()

    def dropped(self, target: str) -> None:
        """Note an attempt that says nothing of the target, such as one whose client left."""
        health = self._targets.get(target)
        if health is not None:
            health.decided()


# --- how busy targets are, as this server sees it ----------------------------------------------------


class TargetLoad:
    """Requests in progress by target, and when each was chosen last; it outlives a reload of the file."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()
        self._chosen: dict[str, int] = {}
        self._turns = count(1)

    def sorted(self, targets: Sequence[GatewayModel]) -> list[GatewayModel]:
        """Return targets with the least busy first, of several the one chosen longest ago; it counts as chosen now.

        So requests that arrive at once take turns before any of them has begun.
        """
        by_load = sorted(targets, key=lambda t: (self._running[t.name], self._chosen.get(t.name, 0)))
        if by_load:
            self._chosen[by_load[0].name] = next(self._turns)
        return by_load

    def begin(self, target: GatewayModel) -> None:
        """Count a request that is sent to a target."""
        self._running[target.name] += 1

    def end(self, target: GatewayModel) -> None:
        """Count off a request whose answer has ended or failed."""
        self._running[target.name] -= 1

    def running(self, name: str) -> int:
        """Return the requests in progress of a target."""
        return self._running[name]
