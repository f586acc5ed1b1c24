"""How much service each client had, so that the one with the least goes next, and whose tokens share a step.

Knows clients and seconds; knows no sequence, no clock. A virtual counter per client (Sheng et al., "Fairness
in Serving Large Language Models", OSDI 2024), counted in seconds of steps instead of weighted tokens: what a
prompt's and an answer's tokens cost on this machine is measured anyway, and a cached token costs nothing.

And the sequences that have not ended, how many hold blocks, and which of two goes first: by priority, arrival and
deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from math import ceil, inf

from freehold.base.types import Priority
from freehold.run.engine.sequence import Sequence


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


# --- whose newest tokens a step computes where it cannot have those of all --------------------------
# Clients take equal parts of a step's seconds.
# The promise: of n clients, none's answers are slower than n times what they would take alone, at the mean
# over steps. So a step of several clients is no longer than n times the tokens of the client with the fewest,
# each client has as many tokens in it as any other while it has some, and its own answers take turns. Beside
# that a step spends at most GRAMMAR_S on grammars, or one token's where one alone takes more.

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


# --- the sequences that have not ended -------------------------------------------------------------


class LiveSequences:
    """Iterated over in order of arrival. The counts may be read from any thread."""

    def __init__(self) -> None:
        self._seqs: dict[Sequence, None] = {}
        self._deadlines: dict[Sequence, float] = {}
        self._number = 0
        # By client: sequences that hold no block, and the tokens of their prompts.
        self._queues: dict[Priority, dict[str, tuple[int, int]]] = {"interactive": {}, "batch": {}}
        self.running = 0  # sequences that hold blocks
        self.promoted: Sequence | None = None  # batch work that counts as interactive to its end

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._seqs)

    def __len__(self) -> int:
        return len(self._seqs)

    def __contains__(self, seq: object) -> bool:
        return seq in self._seqs

    @property
    def waiting(self) -> int:
        """Sequences that hold no block."""
        return len(self._seqs) - self.running

    def queued(self, priority: Priority) -> list[tuple[str, int, int]]:
        """Return (client, sequences, tokens) of those that wait and may go before one of `priority`.

        A client may occur twice. A sequence that shares another's prompt has no tokens of its own here.
        """
        queues = [*self._queues.values()] if priority == "batch" else [self._queues[priority]]
        return [(client, *waiting) for queue in queues for client, waiting in [*queue.items()]]

    def add(self, seq: Sequence, now: float) -> None:
        """Add a sequence that arrives `now`."""
        self._number += 1
        seq.number, seq.arrived_at, seq.scheduled_at = self._number, now, now
        self._seqs[seq] = None
        if seq.request.deadline is not None:
            self._deadlines[seq] = seq.request.deadline
        self.count(seq, 1)

    def remove(self, seq: Sequence) -> None:
        """Remove a sequence, before it gives its blocks back."""
        del self._seqs[seq]
        self._deadlines.pop(seq, None)
        self.count(seq, -1)

    def count(self, seq: Sequence, change: int) -> None:
        """Add `change` to the count of running or waiting sequences, by whether `seq` holds blocks."""
        if seq.block_table:
            self.running += change
        else:
            queue, client = self._queues[seq.request.priority], seq.request.client
            count, tokens = queue.get(client, (0, 0))
            if count + change:
                queue[client] = count + change, tokens + change * own_tokens(seq)
            else:
                del queue[client]

    @property
    def has_deadlines(self) -> bool:
        """Whether any sequence has one."""
        return bool(self._deadlines)

    def expired(self, now: float) -> list[Sequence]:
        """Return the sequences whose deadline has passed."""
        return [seq for seq, deadline in self._deadlines.items() if deadline < now]

    def is_background(self, seq: Sequence) -> bool:
        """Tell whether interactive work goes before `seq`."""
        return seq.request.priority == "batch" and seq is not self.promoted

    def rank(self, seq: Sequence) -> tuple[bool, float, int]:
        """Order sequences by who may take another's blocks: a fixed order, so none takes them back."""
        return self.is_background(seq), seq.turn, seq.number


def own_tokens(seq: Sequence) -> int:
    """Return the tokens that a sequence has to compute when it begins, without a prompt that another computes."""
    return len(seq.tokens) - (len(seq.request.prompt) if seq.parent is not None else 0)
