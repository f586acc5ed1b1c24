"""How busy targets are, as this server sees it: requests in progress, and when each target was chosen last.

Knows names and counts. It outlives a reload of the file. Path: handle.py -> choose -> TargetLoad.sorted; attempts.py
-> TargetLoad.begin; stream.py -> TargetLoad.end
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count

from freehold.router.gateway import GatewayModel


class TargetLoad:
    """Requests in progress by target."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()
        self._chosen: dict[str, int] = {}
        self._turns = count(1)

    def sorted(self, targets: Sequence[GatewayModel]) -> list[GatewayModel]:
        """Return targets with the least busy first, of several the one chosen longest ago; it counts as chosen now.

        So requests that arrive at once take turns before any of them has begun.
        """
        found = sorted(targets, key=lambda t: (self._running[t.name], self._chosen.get(t.name, 0)))
        if found:
            self._chosen[found[0].name] = next(self._turns)
        return found

    def begin(self, target: GatewayModel) -> None:
        """Count a request that is sent to a target."""
        self._running[target.name] += 1

    def end(self, target: GatewayModel) -> None:
        """Count off a request whose answer has ended or failed."""
        self._running[target.name] -= 1

    def running(self, name: str) -> int:
        """Return the requests in progress of a target."""
        return self._running[name]
