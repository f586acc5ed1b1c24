"""How much service each client had, so that the one with the least goes next.

Knows clients and seconds; knows no sequence, no clock. A virtual counter per client (Sheng et al., "Fairness
in Serving Large Language Models", OSDI 2024), counted in seconds of steps instead of weighted tokens: what a
prompt's and an answer's tokens cost on this machine is measured anyway, and a cached token costs nothing.
Path: Scheduler.learn -> Shares.charge; Scheduler.schedule -> Shares.used
"""

from __future__ import annotations


class Shares:
    """Seconds by client; only differences matter."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._live: dict[str, int] = {}  # running sequences
        self._expected: dict[
            str, float
        ] = {}  # seconds that the sequences of a client were expected to take alone
        self._floor = 0.0  # the least of any active client, as of the latest change

    def enter(self, client: str, seconds: float = 0.0) -> float:
        """Add a sequence that is expected to take these seconds by itself; return its turn.

        A client that was away has saved nothing up: it starts at the least of the active ones. The turn is the
        client's counter and what its other sequences are expected to take, as in start-time fair queueing (Goyal et
        al. 1996). It is fixed, and counters grow: every sequence comes first at some time.
        """
        if not self._live.get(client):
            self._raise_floor()
            self._used[client] = max(self._used.get(client, 0.0), self._floor)
        self._live[client] = self._live.get(client, 0) + 1
        before = self._expected.get(client, 0.0)
        self._expected[client] = before + seconds
        return self._used[client] + before

    def leave(self, client: str, seconds: float = 0.0) -> None:
        """Remove a sequence, as it entered. An inactive client at the floor, where a new one starts, is forgotten."""
        self._raise_floor()
        self._live[client] -= 1
        self._expected[client] -= seconds
        if not self._live[client]:
            del self._live[client]
            del self._expected[client]
            self._used = {t: used for t, used in self._used.items() if t in self._live or used > self._floor}

    def charge(self, client: str, seconds: float) -> None:
        """Add seconds of a step to a client's counter."""
        self._used[client] = self._used.get(client, self._floor) + seconds

    @property
    def clients(self) -> int:
        """Clients with sequences that have not ended."""
        return len(self._live)

    def used(self, client: str) -> float:
        """Return the client's counter."""
        return self._used.get(client, self._floor)

    def _raise_floor(self) -> None:
        if self._live:
            self._floor = max(self._floor, min(self._used[t] for t in self._live))
