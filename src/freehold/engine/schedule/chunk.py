"""What a step computes for one sequence.

Knows a sequence and a range of its tokens; knows no block, no budget and no other sequence.
Path: Scheduler.schedule -> ScheduledChunk -> ModelRunner.run -> Emitter.emit
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens first .. first + count - 1 of a sequence, and draft tokens after them."""

    seq: Sequence
    first: int
    count: int
    draft: tuple[int, ...] = ()  # for the places after the sequence's newest token, to be verified

    @property
    def num_tokens(self) -> int:
        """Tokens computed, the draft included."""
        return self.count + len(self.draft)

    @property
    def tokens(self) -> list[int]:
        """The ids of those tokens."""
        return [*self.seq.tokens[self.first : self.first + self.count], *self.draft]

    @property
    def decodes(self) -> bool:
        """Tell whether this is a running answer's newest token alone."""
        return self.count == 1 and self.last and self.seq.request.sink is None

    @property
    def last(self) -> bool:
        """Tell whether the chunk ends at the newest token, so that the next can be chosen."""
        return self.first + self.count == len(self.seq.tokens)

    @property
    def logit_rows(self) -> range:
        """Rows of the chunk whose logits are requested, counted from its first."""
        if self.seq.request.sink is not None:
            return range(self.count)
        return range(self.count - 1, self.num_tokens) if self.last else range(0)
