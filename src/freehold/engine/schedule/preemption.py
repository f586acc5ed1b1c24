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

STALL_S = 1.0  # a reader slower than this may lose its place to another; a terminal's user never notices


class Preemption:
    """Chooses whose blocks go, by a fixed order: stalled readers, then the youngest batch work, then the youngest."""

    def __init__(
        self, live: LiveSequences, blocks: BlockManager, batch: dict[Sequence, ScheduledChunk]
    ) -> None:
        """`batch`: the step under construction, which a preempted sequence leaves."""
        self._live, self._blocks, self._batch = live, blocks, batch
        self.count = 0

    def make_room(self, seq: Sequence, need: int, now: float, younger: bool) -> bool:
        """Have `need` blocks free, with `younger` also from sequences of the same priority that came after `seq`."""
        victims, chosen = self._victims(seq, now, younger), []
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

    def make_reservable(self, seq: Sequence, now: float, younger: bool) -> bool:
        """Reserve what the cache keeps of `seq` besides blocks, by the rules of `make_room`."""
        victims = self._victims(seq, now, younger)
        if not self._blocks.reservable(seq, victims):
            return False
        for victim in victims:
            self._preempt(victim)
            if self._blocks.reserve(seq):
                break
        return True

    def _victims(self, seq: Sequence, now: float, younger: bool) -> list[Sequence]:
        """List the sequences that may be preempted for `seq`, first to go first."""
        rank = self._live.rank(seq)
        holders = [s for s in self._live if s.block_table and s is not seq]
        stalled = {s for s in holders if s.pending and now - s.pending_since > STALL_S}
        behind = [
            s
            for s in holders
            if self._live.rank(s) > rank and (younger or self._live.is_background(s) > rank[0])
        ]
        return sorted({*stalled, *behind}, key=lambda s: (s in stalled, self._live.rank(s)), reverse=True)

    def _preempt(self, seq: Sequence) -> None:
        self._batch.pop(seq, None)
        self._live.count(seq, -1)
        self._blocks.release(seq)
        self._live.count(seq, 1)
        seq.loading = False
        seq.preempted += 1
        self.count += 1
