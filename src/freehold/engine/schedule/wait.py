"""How long a request that came now would wait for its first token.

Knows the prefill still to be computed, its cost and how fast the queue moved lately; knows no block and no clock.
Path: Scheduler.schedule -> WaitEstimate.update; Admission.enter, Engine.stats -> WaitEstimate.seconds
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from freehold.engine.schedule.budget import Budget
from freehold.engine.schedule.live import LiveSequences
from freehold.engine.schedule.shares import Shares
from freehold.engine.sequence import Request, Sequence

FIRST_TOKENS = 32  # latest first tokens that say how fast the queue moves


class RemainingPrefill(NamedTuple):
    """What is left to compute of a prompt, and by what its turn is decided."""

    background: bool
    client: str
    tokens: int
    seconds: float


class WaitEstimate:
    """Updated by every step; any thread may ask for `seconds`."""

    def __init__(self, live: LiveSequences, budget: Budget, shares: Shares) -> None:
        self._live, self._budget, self._shares = live, budget, shares
        self._ahead: list[RemainingPrefill] = []
        self._slowdown = 1.0
        self._queued_s = 0.0  # seconds of steps while a sequence waited to begin
        self._begins: deque[float] = deque(
            [0.0], maxlen=FIRST_TOKENS
        )  # `_queued_s` at the latest first tokens

    def remaining(self, seq: Sequence) -> RemainingPrefill:
        """Return what is left of a sequence's prefill, with what it is expected to take."""
        done = seq.num_computed_tokens if seq.block_table else seq.known_tokens
        tokens = len(seq.tokens) - done
        seconds = self._budget.expected(done, tokens, seq.request.all_logits)
        return RemainingPrefill(self._live.is_background(seq), seq.request.client, tokens, seconds)

    def update(self, ahead: list[RemainingPrefill], slowdown: float) -> None:
        """Replace what is to be computed; `slowdown`: how many times longer it takes beside running answers."""
        self._ahead, self._slowdown = ahead, slowdown

    def stepped(self, seconds: float) -> None:
        """Count a step of this many seconds, if a sequence waited meanwhile."""
        self._queued_s += seconds if self._live.waiting else 0.0

    def began(self) -> None:
        """Note that a sequence gets its first token."""
        self._begins.append(self._queued_s)

    def seconds(self, request: Request | None = None, entered: Iterable[Sequence] = ()) -> float:
        """Return the seconds until `request` would begin; None: one queued after all others.

        `entered`: sequences that came since the latest step. Where blocks are scarce the queue moves more slowly
        than prompts could be computed; then by how fast it moved.
        """
        ahead = [*self._ahead, *map(self.remaining, entered)]
        if request is not None:
            used = self._shares.used
            turn = (request.priority == "batch", used(request.client), len(request.prompt))
            ahead = [each for each in ahead if (each.background, used(each.client), each.tokens) <= turn]
        pace = (self._queued_s - self._begins[0]) / len(self._begins)
        return max(
            sum(each.seconds for each in ahead) * self._slowdown, min(len(ahead), self._live.waiting) * pace
        )
