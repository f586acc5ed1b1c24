"""The sequences that have not ended, how many hold blocks, and which of two goes first.

Knows priorities, arrival and deadlines; knows no block, no budget and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator

from freehold.base.types import Priority
from freehold.run.engine.sequence import Sequence


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
