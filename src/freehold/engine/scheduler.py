"""Decides which rows of which sequences the next step computes.

Knows blocks and token counts; knows no text, no weights. One budget of rows a step, fitted to one
second: single tokens of running answers first, prompt chunks with what is left. Older sequences go before
younger ones. When blocks run out, one whose reader has stalled gives its own up, else the youngest; it is
computed again later, to the same bits.
Path: Engine.step -> Scheduler.schedule -> ModelRunner.run -> Engine.postprocess
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from freehold.engine.blocks import BlockManager
from freehold.engine.sequence import Sequence

STALL_S = 1.0  # a reader slower than this may lose its place to another; a terminal's user never notices
# A step is what Ctrl-C and everybody else waits for, so a prompt is cut to a second each. Its size changes
# no bit of any result. Measured on a 0.5b: 32 rows cost 10 % of the speed, 64 cost 6 %, 128 nothing.
STEP_S = 1.0
FIRST_ROWS, MIN_ROWS, MAX_ROWS = 128, 64, 512
LOGIT_ROWS = 64  # rows a step may take of a sequence that wants all logits: 64 x 262,144 x 4 bytes are 67 MB


@dataclass(frozen=True, slots=True)
class Work:
    """Rows first .. first + count - 1 of a sequence, and guesses at what comes after them."""

    seq: Sequence
    first: int
    count: int
    draft: tuple[int, ...] = ()  # tokens after the sequence's newest one, to be verified

    @property
    def rows(self) -> int:
        """Rows computed, guesses included."""
        return self.count + len(self.draft)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the rows."""
        return [*self.seq.tokens[self.first : self.first + self.count], *self.draft]

    @property
    def decodes(self) -> bool:
        """Tell whether this is a running answer's newest token alone."""
        return self.count == 1 and self.last and self.seq.request.sink is None

    @property
    def last(self) -> bool:
        """Tell whether these rows end at the newest token, so that the next can be chosen."""
        return self.first + self.count == len(self.seq.tokens)

    @property
    def logit_rows(self) -> range:
        """Rows whose logits are wanted, counted within this work."""
        if self.seq.request.sink is not None:
            return range(self.count)
        return range(self.count - 1, self.rows) if self.last else range(0)


class Scheduler:
    """Holds the live sequences, oldest first."""

    def __init__(self, blocks: BlockManager, step_rows: int, clock: Callable[[], float]) -> None:
        self._blocks = blocks
        self._most_rows = step_rows
        self.budget = min(FIRST_ROWS, step_rows)
        self._clock = clock
        self._live: list[Sequence] = []
        self.preemptions = 0

    @property
    def live(self) -> int:
        """Sequences that have not ended."""
        return len(self._live)

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return sum(bool(s.table) for s in self._live)

    @property
    def waiting(self) -> int:
        """Sequences that hold none."""
        return self.live - self.running

    @property
    def waiting_tokens(self) -> int:
        """Tokens that must be computed before those can go on."""
        return sum(len(s.tokens) for s in self._live if not s.table)

    def expected_wait_s(self) -> float:
        """Return the seconds until a request that came now would get its first token."""
        return 0.0

    def late(self) -> list[Sequence]:
        """Return the sequences whose time is over."""
        now = self._clock()
        return [s for s in self._live if s.request.deadline is not None and s.request.deadline < now]

    def add(self, seq: Sequence) -> None:
        """Admit a sequence; it gets blocks when a step first takes it."""
        self._live.append(seq)

    def remove(self, seq: Sequence) -> None:
        """Drop a sequence that ended or was cancelled, and keep its blocks for one that begins alike."""
        if seq in self._live:
            self._live.remove(seq)
            self._blocks.retire(seq)

    def schedule(self) -> list[Work]:
        """Choose the next step's rows; empty when no sequence can go on."""
        batch: list[Work] = []
        budget = self.budget
        for seq in self._in_turn():
            if budget == 0:
                break
            if not self._place(seq, batch):
                continue
            first = min(seq.computed, len(seq.tokens) - 1)
            limit = budget if seq.request.sink is None else min(budget, LOGIT_ROWS)
            count = min(len(seq.tokens) - first, limit)
            batch.append(Work(seq, first, count))
            budget -= count
        return batch

    def lengthened(self, work: Work, draft: list[int]) -> Work:
        """Let a step verify guesses, as many as find room in blocks that nobody holds or will miss."""
        room = self._blocks.stretch(work.seq, len(work.seq.tokens) + len(draft)) - len(work.seq.tokens)
        return Work(work.seq, work.first, work.count, tuple(draft[:room]))

    def pace(self, rows: int, seconds: float) -> None:
        """Fit the next steps' rows to STEP_S by how long a full one took."""
        if rows >= self.budget and seconds > 0:
            self.budget = min(max(int(rows / seconds * STEP_S), MIN_ROWS), self._most_rows)

    def _in_turn(self) -> Iterator[Sequence]:
        """Yield ready sequences: those that need one row, then the others."""
        ready = [s for s in self._live if s.ready]
        one_row = [s for s in ready if s.table and len(s.tokens) - s.computed <= 1]
        yield from one_row
        yield from (s for s in ready if s not in one_row)

    def _place(self, seq: Sequence, batch: list[Work]) -> bool:
        """Make sure all tokens of `seq` have blocks, at others' expense if the rules allow it."""
        if not seq.table and seq.request.sink is None:
            self._blocks.adopt(seq)
        while not self._blocks.grow(seq, len(seq.tokens)):
            victim = self._victim(seq, batch)
            if victim is None:
                return False
            self._blocks.release(victim)
            self.preemptions += 1
        return True

    def _victim(self, seq: Sequence, batch: list[Work]) -> Sequence | None:
        taken = [seq, *(work.seq for work in batch)]
        holders = [s for s in self._live if s.table and s not in taken]
        now = self._clock()
        stalled = [s for s in holders if s.pending and now - s.paused_at > STALL_S]
        younger = [s for s in holders if self._live.index(s) > self._live.index(seq)]
        choices = stalled or younger
        return choices[-1] if choices else None
