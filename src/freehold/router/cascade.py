"""Whether the first tokens of an owned model's answer are likely enough to be sent, or the next target is asked.

The mean of the log-probabilities of at most `check` tokens, as a probability, against `below`. Tokens of thinking and
of tool calls count: they are the answer's too. Knows chunks and their log-probabilities, and no target.
Path: attempts.py -> look -> Looked
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from freehold.errors import EngineClosed
from freehold.providers.cleared import Cleared
from freehold.providers.contract import Piece
from freehold.router.gateway import Escalation, GatewayModel
from freehold.serving import Job, Stream


@dataclass(frozen=True, slots=True)
class Looked:
    """What an answer's first pieces say. `probability` None: it had no log-probabilities."""

    probability: float | None
    tokens: int

    def escalates(self, limit: Escalation) -> bool:
        """Return whether the answer is to be thrown away."""
        return self.probability is not None and self.probability < limit.below


def can_look(target: GatewayModel, job: Job) -> bool:
    """Return whether a cascade can look at a target's answer: an owned one that reports log-probabilities."""
    if not target.owned or job.n != 1:
        return False
    return target.remote is None or target.remote.abilities.logprobs


def with_logprobs(cleared: Cleared[Job]) -> Cleared[Job]:
    """Return the request, with log-probabilities asked for."""
    if cleared.work.logprobs is not None:
        return cleared
    return cleared.with_work(replace(cleared.work, logprobs=0))


async def look(stream: Stream, pieces: list[Piece], limit: Escalation) -> Looked:
    """Read an answer until `check` tokens have come, or all of it. Raises what the stream raises.

    `pieces`: its first; those that are read are appended.
    """
    total, tokens = 0.0, 0
    while True:
        chunk = pieces[-1][1]
        total += sum(each.logprob for each in chunk.logprobs)
        tokens += len(chunk.logprobs)
        if chunk.finish_reason == "cancelled":
            raise EngineClosed("the answer was cancelled before its end", "ask again")
        if tokens >= limit.check or chunk.finish_reason is not None:
            return Looked(math.exp(total / tokens) if tokens else None, tokens)
        pieces.append(await anext(stream))
