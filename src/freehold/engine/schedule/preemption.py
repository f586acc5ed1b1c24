"""Takes blocks from running sequences for one that needs them.

Knows who holds blocks, ranks and stalled readers; knows no budget and no token. A preempted sequence keeps its
tokens and is computed again later, to the same bits. None is preempted unless all that may be hold enough together.
Path: Scheduler.schedule -> Preemption.make_room, make_reservable -> BlockManager.release
"""

from __future__ import annotations

from collections import Counter

from freehold.engine.cache.blocks import BlockManager
from freehold.engine.schedule.chunk import ScheduledChunk
from freehold.engine.schedule.live import LiveSequences
from freehold.engine.sequence import Sequence

BYPASS_S = (
    2.0  # for so long others may pass one that finds no room; then those that come after it are preempted,
)
RETRY_S = 0.25  # of other clients after so long; until then it is not tried again unless blocks became free
STALL_S = 1.0  # a reader slower than this may lose its place to another; a terminal's user never notices


class Preemption:
    """Chooses whose blocks go, by a fixed order: stalled readers, then the last of batch work, then the last."""

    def __init__(
        self, live: LiveSequences, blocks: BlockManager, batch: dict[Sequence, ScheduledChunk]
    ) -> None:
        """`batch`: the step under construction, which a preempted sequence leaves."""
        self._live, self._blocks, self._batch = live, blocks, batch
        self.count = 0

    def make_room(self, seq: Sequence, need: int, now: float, waited_s: float) -> bool:
        """Have `need` blocks free for `seq`, which waited so long; inf: it runs, and needs its next block."""
        victims, chosen = self._victims(seq, now, waited_s), []
        free = self._blocks.available
        if free + sum(len(s.block_table) for s in victims) < need:
            return False
        holders = Counter(block for s in self._live for block in s.block_table)
        for victim in victims:
            if free >= need:
                break
            chosen.append(victim)
            holders.subtract(victim.block_table)
            free += sum(not holders[block] for block in victim.block_table)
        if free < need:
            return False
        for victim in chosen:
            self._preempt(victim)
        return True

    def make_reservable(self, seq: Sequence, now: float, waited_s: float) -> bool:
        """Reserve what the cache keeps of `seq` besides blocks, by the rules of `make_room`."""
        victims = self._victims(seq, now, waited_s)
        if not self._blocks.reservable(seq, victims):
            return False
        for victim in victims:
            self._preempt(victim)
            if self._blocks.reserve(seq):
                break
        return True

    def _victims(self, seq: Sequence, now: float, waited_s: float) -> list[Sequence]:
        """List the sequences that may be preempted for `seq`, first to go first."""
        rank = self._live.rank(seq)
        holders = [s for s in self._live if s.block_table and s is not seq]
        stalled = {s for s in holders if s.pending and now - s.pending_since > STALL_S}
        behind = [s for s in holders if self._live.rank(s) > rank and self._may_take(seq, s, waited_s)]
        return sorted({*stalled, *behind}, key=lambda s: (s in stalled, self._live.rank(s)), reverse=True)

    def _may_take(self, seq: Sequence, holder: Sequence, waited_s: float) -> bool:
        """Tell whether `seq` waited long enough for the blocks of one that comes after it."""
        if self._live.is_background(holder) > self._live.is_background(seq):
            return True
        return waited_s > (BYPASS_S if holder.request.client == seq.request.client else RETRY_S)

    def _preempt(self, seq: Sequence) -> None:
        self._batch.pop(seq, None)
        self._live.count(seq, -1)
        self._blocks.release(seq)
        self._live.count(seq, 1)
        seq.loading = False
        seq.preempted += 1
        self.count += 1
