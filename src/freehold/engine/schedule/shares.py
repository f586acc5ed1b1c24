"""How much service each client had, so that the one with the least goes next.

Knows clients and seconds; knows no sequence, no clock. A virtual counter per client (Sheng et al., "Fairness
in Serving Large Language Models", OSDI 2024), counted in seconds of steps instead of weighted tokens: what a
prompt's and an answer's tokens cost on this machine is measured anyway, and a cached token costs nothing.
Path: Scheduler.learn -> Shares.charge; Scheduler.schedule -> Shares.used
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf

from freehold.engine.sequence import Sequence


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


# --- whose prompts a step shared by several clients computes first: those of clients that ask little
# A client without a running answer whose prompts are brief in all goes before the others, in order of size
# and arrival, so its first token comes after the step that runs and its own. That is bounded: others have
# half of the room for prefill in the long run, in which the client with the least service goes first.

BRIEF_STEPS = 2  # shared steps that a client's prompts take at most to be brief
SAVED_STEPS = 16  # of room that they may have before others had theirs
SHARE = 0.5  # of the room that others wait for too
WHOLE_SHARE = 0.5  # of a step, by which it may be longer if a brief prompt is computed to its end then
# After the latest of them for so long the next is expected, and shared steps are short: longer ones compute up to a
# quarter more tokens a second where several clients ask for much.
EXPECTED_S = 10.0


class Newcomers:
    """Chooses clients for one step after another; keeps what they may have before others."""

    def __init__(self) -> None:
        self._saved_s = inf
        self._step_s = inf
        self._until = 0.0  # the next one is expected
        self.turns: dict[str, tuple[int, int]] = {}  # by client, those that go first
        self.seconds = 0.0  # what their prompts take

    @property
    def more_s(self) -> float:
        """Seconds by which the step may be longer, if that ends one of their prompts."""
        return WHOLE_SHARE * self._step_s

    def choose(
        self, prompts: Iterable[Sequence], prompt_s: dict[str, float], step_s: float, now: float
    ) -> float:
        """Choose for a step that may take `step_s` if it is short; return that, or infinity where none is expected.

        `prompt_s`: seconds of clients that may go first. `step_s` is infinite where no step is shared.
        """
        self.turns, self.seconds, self._step_s = {}, 0.0, step_s
        brief = {client: s for client, s in prompt_s.items() if s <= BRIEF_STEPS * step_s < inf}
        if brief:
            self._until = now + EXPECTED_S
        if step_s == inf or now >= self._until:
            return inf
        if self._saved_s < 0.0:
            return step_s
        self.seconds = sum(brief.values())
        for seq in prompts:  # in order of arrival
            client = seq.request.client
            if client in brief and client not in self.turns:
                self.turns[client] = ceil(brief[client] / step_s), seq.number
        return step_s

    def spend(self, room: float, seconds: float) -> None:
        """Count `seconds` that theirs took of `room`, for which others wait too."""
        self._saved_s = min(self._saved_s + SHARE * room - seconds, SAVED_STEPS * self._step_s)
