"""Whose prompts a step shared by several clients computes first: those of clients that ask little.

Knows what prompts take, by client, and when; knows no block, no cache and no clock. A client without a running answer
whose prompts are brief in all goes before the others, in order of size and arrival, so its first token comes after the
step that runs and its own. That is bounded: others have half of the room for prefill in the long run, in which the
client with the least service goes first.
Path: Scheduler.schedule -> Newcomers.choose -> DecodeTurns.choose, Scheduler._prefill; -> Newcomers.spend
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf

from freehold.engine.sequence import Sequence

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
