"""Whose newest tokens a step computes where it cannot have those of all: clients take equal parts of a step's seconds.

Knows clients, what a step takes by its tokens and what a sequence's grammar took; knows no block, no prompt and no
clock. The promise: of n clients, none's answers are slower than n times what they would take alone, at the mean over
steps. So a step of several clients is no longer than n times the tokens of the client with the fewest, each client
has as many tokens in it as any other while it has some, and its own answers take turns. Beside that a step spends
at most GRAMMAR_S on grammars, or one token's where one alone takes more.
Path: Scheduler.schedule -> DecodeTurns.choose -> ScheduledChunk
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Set
from math import inf

from freehold.engine.sequence import Sequence

GRAMMAR_S = 0.02  # of a step, for the grammars of all its answers: schemas take 0.03 ms a token
# A token whose grammar takes longer is dear: a step has one of them at most, and only with time that it saved up.
DEAR_S = 0.002


class DecodeTurns:
    """Chooses among running answers; keeps the seconds that dear tokens are owed."""

    def __init__(self, used: Callable[[str], float], seconds: Callable[[int], float]) -> None:
        """`used`: a client's service so far; `seconds`: what a step of this many newest tokens takes."""
        self._used, self._seconds = used, seconds
        self._owed_s = 0.0
        self.limit_s = inf  # of the step, where several clients share it

    def choose(
        self,
        decodes: list[Sequence],
        most: int,
        waiting: Set[str] = frozenset(),
        step_s: float = 0.0,
        longest_s: float = inf,
        brief_s: float = 0.0,
    ) -> list[Sequence]:
        """Return those of `decodes` whose newest tokens the step computes, `most` at most.

        `waiting`: clients with prompts to compute, for which a part of the step is left; `brief_s`: what brief ones
        take, of which up to half a step is left. `step_s`: what the step may take in any case; `longest_s`: what it
        may take at most, if several clients share it.
        """
        clients = {seq.request.client for seq in decodes} | waiting
        self.limit_s = inf
        if not decodes:
            return decodes
        if len(clients) <= 1 and len(decodes) <= most and sum(map(grammar_s, decodes)) <= DEAR_S:
            return decodes
        queues = self._queues(decodes)
        many = len(clients) > 1
        alone = min((self._seconds(len(queue)) for queue in queues.values()), default=inf)
        self.limit_s = min(max(len(clients) * alone, step_s), longest_s) if many else inf
        dear = self._dear(decodes)
        each = self.limit_s / len(clients)
        part = each if many and dear is not None else 0.0  # of the dear one's client
        # Clients that only wait have as much of the step for prompts as each of the others for tokens.
        others = len(waiting - queues.keys())
        one_each = longest_s - min(brief_s, longest_s / 2)
        one_each = min(self.limit_s - others * each, one_each) if others else min(self.limit_s, one_each)
        kept = max(others, 1) * each if waiting else 0.0
        more = min(one_each, self.limit_s - part - kept) if many else inf
        chosen = self._fill(queues, one_each, more, most - (dear is not None), dear)
        if dear is not None:
            self._owed_s += part
            if not many or not chosen or not part or self._owed_s >= grammar_s(dear):
                self._owed_s = 0.0
                chosen.append(dear)
        return chosen

    def _queues(self, decodes: Iterable[Sequence]) -> dict[str, deque[Sequence]]:
        """Return each client's answers, the one that waited longest first; so also the clients."""
        queues: dict[str, deque[Sequence]] = {}
        for seq in sorted(decodes, key=lambda s: s.scheduled_at):
            queues.setdefault(seq.request.client, deque()).append(seq)
        turns = {client: (queue[-1].scheduled_at, self._used(client)) for client, queue in queues.items()}
        return {client: queues[client] for client in sorted(queues, key=turns.__getitem__)}

    def _fill(
        self,
        queues: dict[str, deque[Sequence]],
        one_each: float,
        more: float,
        most: int,
        dear: Sequence | None,
    ) -> list[Sequence]:
        """Take answers in turn from each client, of the one that saves for a dear token one at most.

        One of each fit into `one_each` seconds, one at least; further ones fit into `more`.
        """
        chosen: list[Sequence] = []
        spent_s = choice_s = 0.0
        turn = deque(queues.items())
        while turn and len(chosen) < most:
            client, queue = turn.popleft()
            seq = queue.popleft()
            cost = grammar_s(seq)
            took = cost <= DEAR_S and spent_s + cost <= GRAMMAR_S
            if took:
                spent_s += cost
                choice_s += seq.choice_s
                room = one_each if len(chosen) < len(queues) else more
                if chosen and self._seconds(len(chosen) + 1) + spent_s + choice_s > room:
                    break
                chosen.append(seq)
            if queue and not (took and more < inf and dear is not None and dear.request.client == client):
                turn.append((client, queue))
        return chosen

    def _dear(self, decodes: list[Sequence]) -> Sequence | None:
        """Return the dear answer whose turn it is: of the client with least service, the one that waited longest."""
        dear = [seq for seq in decodes if grammar_s(seq) > DEAR_S]
        used = self._used
        return min(dear, key=lambda s: (used(s.request.client), s.scheduled_at, s.number), default=None)


def grammar_s(seq: Sequence) -> float:
    """Return the seconds that the next token of a sequence is expected to take in its grammar."""
    return seq.matcher.token_s if seq.matcher is not None else 0.0
