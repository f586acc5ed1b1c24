"""A running answer, as the caller holds it.

Knows its sequence and how to enter it; knows no step. Iterated over, it drives the engine; in a served
engine, where one thread pumps, it is started and its tokens are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from freehold.base.types import FinishReason, OnPrefill, Usage
from freehold.run.engine.sequence import Sequence, TokenOut


class SequenceEngine(Protocol):
    """What a generation calls on its engine."""

    def enter(self, seq: Sequence) -> None:
        """Take a sequence in before the next step."""

    def advance(self, seq: Sequence, arrived: Callable[[], bool]) -> None:
        """Compute steps until something has arrived."""

    def cancel(self, seq: Sequence) -> None:
        """Give a sequence's blocks back."""


class Generation:
    """A running answer: iterate over it, or `start` it and `take` its tokens; close it to stop within one step."""

    _closed = True  # until it is made: a failed constructor leaves nothing to close

    def __init__(self, engine: SequenceEngine, seq: Sequence) -> None:
        self._engine = engine
        self.on_prefill: OnPrefill | None = None
        self._seq = seq
        self._entered = seq.done  # a resumed answer may be complete
        self._closed = False

    def __iter__(self) -> Iterator[TokenOut]:
        return self

    def __next__(self) -> TokenOut:
        """Return the next token, computing it if need be. An error or an interrupt ends the answer."""
        seq = self._seq
        if self.done:
            raise StopIteration
        try:
            if not seq.pending:  # else an earlier step made several, and none has to be computed
                self.start()
                self._engine.advance(seq, self._arrived)
            return seq.pending.popleft()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def _arrived(self) -> bool:
        self.report()
        return bool(self._seq.pending)

    def report(self) -> None:
        """Call `on_prefill` while no token was made."""
        if self.on_prefill is not None and (read := self.prefill) is not None:
            self.on_prefill(*read)

    @property
    def prefill(self) -> tuple[int, int] | None:
        """How many tokens of the prompt are computed or cached, and how many there are; None once a token was made."""
        seq = self._seq
        total = len(seq.request.prompt) + seq.resumed
        return None if len(seq.tokens) > total or seq.done else (min(seq.num_computed_tokens, total), total)

    def start(self) -> None:
        """Enter the engine now; the first `__next__` does otherwise. Never waits for a step.

        Raises Overloaded where the engine's queue is full, DeadlineExceeded where the wait alone is too long.
        """
        if not self._entered:
            self._engine.enter(self._seq)
            self._entered = True

    def take(self) -> list[TokenOut]:
        """Return what was made and not yet taken; never waits. Raises the answer's own error after its last token."""
        pending = self._seq.pending
        out = [pending.popleft() for _ in range(len(pending))]
        if not out and self._seq.error is not None and not self._closed:
            self.close()
            raise self._seq.error
        return out

    def close(self) -> None:
        """Stop: free the blocks and make no more tokens. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._engine.cancel(self._seq)

    @property
    def done(self) -> bool:
        """Tell whether nothing is left to take, not even an error."""
        seq = self._seq
        return self._closed or (seq.done and not seq.pending and seq.error is None)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, once it did by itself; a resumed answer may have ended before it began."""
        return self._seq.reason

    @property
    def sequence(self) -> Sequence:
        """The sequence it stands for."""
        return self._seq

    @property
    def seed(self) -> int:
        """The seed in use, drawn at the start if none was given."""
        return self._seq.request.seed

    @property
    def usage(self) -> Usage:
        """Counts and seconds so far."""
        return self._seq.usage
