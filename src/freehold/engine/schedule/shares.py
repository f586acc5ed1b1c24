"""How much service each tenant had, so that the one with the least goes next.

Knows tenants and seconds; knows no sequence, no clock. A virtual counter per tenant (Sheng et al., "Fairness
in Serving Large Language Models", OSDI 2024), counted in seconds of steps instead of weighted tokens: what a
prompt's and an answer's tokens cost on this machine is measured anyway, and a cached token costs nothing.
Path: Scheduler.learn -> Shares.charge; Scheduler.schedule -> Shares.used
"""

from __future__ import annotations


class Shares:
    """Seconds by tenant; only differences matter."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._live: dict[str, int] = {}  # running sequences
        self._floor = 0.0  # the least of any active tenant, as of the latest change

    def enter(self, tenant: str) -> None:
        """Add a sequence. A tenant that was away has saved nothing up: it starts at the least of the active ones."""
        if not self._live.get(tenant):
            self._raise_floor()
            self._used[tenant] = max(self._used.get(tenant, 0.0), self._floor)
        self._live[tenant] = self._live.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """Remove a sequence; an inactive tenant at the floor, where a new one starts, is forgotten."""
        self._raise_floor()
        self._live[tenant] -= 1
        if not self._live[tenant]:
            del self._live[tenant]
            self._used = {t: used for t, used in self._used.items() if t in self._live or used > self._floor}

    def charge(self, tenant: str, seconds: float) -> None:
        """Add seconds of a step to a tenant's counter."""
        self._used[tenant] = self._used.get(tenant, self._floor) + seconds

    def used(self, tenant: str) -> float:
        """Return the tenant's counter."""
        return self._used.get(tenant, self._floor)

    def _raise_floor(self) -> None:
        if self._live:
            self._floor = max(self._floor, min(self._used[t] for t in self._live))
