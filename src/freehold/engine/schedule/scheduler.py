"""Decides which rows of which sequences the next step computes.

Knows sequences, blocks, priorities and tenants; knows no text, no weights. One budget a step, no phases: the
newest tokens of running answers first, rows of prompts with what is left. Of the prompts the tenant who had
least goes first, of one tenant's the shortest, and a quarter goes to the one that waited longest. Batch work
gets what interactive work leaves, and a turn now and then. When blocks run out, a sequence whose reader has
stalled gives its own up, else the youngest; it is computed again later, to the same bits.
Path: Engine.step -> Scheduler.schedule -> ModelRunner.run -> Engine._postprocess -> Scheduler.learn
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from freehold._native import BLOCK_TOKENS
from freehold.engine.cache.blocks import BlockManager, blocks_for, common_prefix
from freehold.engine.schedule.budget import BRIEF_S, MAX_NUM_BATCHED_TOKENS, Budget
from freehold.engine.schedule.chunk import ScheduledChunk
from freehold.engine.schedule.cost import TILE
from freehold.engine.schedule.shares import Shares
from freehold.engine.sequence import Request, Sequence
from freehold.types import Priority

STALL_S = 1.0  # a reader slower than this may lose its place to another; a terminal's user never notices
OLDEST_SHARE = 0.25  # of a step's room for prompts: the longest is read at a quarter of the speed at least
AGE_S = 1.0  # batch work that got nothing for so long goes first for one step,
PATIENCE_S = 60.0  # and for good after so long, one such sequence at a time
BYPASS_S = 2.0  # for so long others may pass one that finds no room; then those that came after it make way
RETRY_S = 0.25  # until one that found no room looks again although no block became free
GROWTH = 1  # blocks that each running sequence is expected to need soon; doubled each time it was preempted
BEGINS = 32  # latest first tokens that tell how fast the queue moves


class RemainingPrefill(NamedTuple):
    """What is left to read of a prompt, and by what its turn is decided."""

    batch: bool
    tenant: str
    rows: int
    seconds: float


class Scheduler:
    """Holds the live sequences, oldest first."""

    def __init__(
        self,
        blocks: BlockManager,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        clock: Callable[[], float] = lambda: 0.0,
        target_itl_s: float | None = None,
        guess_s: float = 0.0,
    ) -> None:
        self._blocks = blocks
        self._clock = clock
        self.budget = Budget(max_num_batched_tokens, target_itl_s, guess_s)
        self._shares = Shares()
        self._live: dict[Sequence, None] = {}
        self._timed: dict[Sequence, float] = {}  # those with a deadline
        self._batch: dict[Sequence, ScheduledChunk] = {}
        self._promoted: Sequence | None = None  # batch work that counts as interactive to its end
        self._lent_at = 0.0  # when a prompt of batch work was last read: ten that wait get one turn, not ten
        self._number = 0
        self._going = 0  # sequences that hold blocks and whose readers keep up
        self._loading = False  # a sequence takes blocks from disk
        self._full = False  # no row of the next prompt fits into the step
        self._owed = 0.0  # seconds of reading that the oldest prompt has coming
        self._queued_s = 0.0  # seconds of steps while somebody waited to begin,
        self._begins: deque[float] = deque(
            [0.0], maxlen=BEGINS
        )  # and how many those were at the latest first tokens
        self._now = 0.0
        self.preemptions = 0
        # What others may read at any time, as of the latest step.
        self.running = 0
        self._queues: dict[Priority, list[int]] = {"interactive": [0, 0], "batch": [0, 0]}
        self._ahead: list[RemainingPrefill] = []
        # Who waits for a first token with little to read, of those who go first and of the others: they make a burst.
        self._brief = [0, 0]
        self._slowed = 1.0  # how many times longer reading takes for the answers that run beside it

    @property
    def live(self) -> int:
        """Sequences that have not ended."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Sequences that hold no block."""
        return sum(count for count, _ in self._queues.values())

    def queued(self, priority: Priority) -> tuple[int, int]:
        """Return how many sequences hold no block, and their tokens; to interactive work the batch work is no queue."""
        queues = [*self._queues.values()] if priority == "batch" else [self._queues[priority]]
        return sum(count for count, _ in queues), sum(tokens for _, tokens in queues)

    def add(self, seq: Sequence) -> None:
        """Admit a sequence; it gets blocks when a step first takes it."""
        self._number += 1
        seq.number, seq.arrived = self._number, self._clock()
        seq.served_at = seq.arrived
        self._live[seq] = None
        self._shares.enter(seq.request.tenant)
        if seq.request.deadline is not None:
            self._timed[seq] = seq.request.deadline
        self._count(seq, 1)

    def _count(self, seq: Sequence, change: int) -> None:
        """Count a sequence in where it is now, or out."""
        if seq.block_table:
            self.running += change
        else:
            queue = self._queues[seq.request.priority]
            queue[0] += change
            queue[1] += change * len(seq.tokens)

    def remove(self, seq: Sequence, keep: bool = True) -> None:
        """Drop a sequence that ended or was cancelled; `keep`: what it computed stays while there is room."""
        if seq in self._live:
            del self._live[seq]
            self._timed.pop(seq, None)
            self._shares.leave(seq.request.tenant)
            self._count(seq, -1)
            (self._blocks.retire if keep else self._blocks.release)(seq)

    def expired(self) -> list[Sequence]:
        """Return the sequences whose deadline has passed."""
        now = self._clock() if self._timed else 0.0
        return [seq for seq, deadline in self._timed.items() if deadline < now]

    # --- the step ----------------------------------------------------------------------------------

    def schedule(self) -> list[ScheduledChunk]:
        """Choose the next step's rows; empty when no sequence can go on."""
        while True:
            self._loading = False
            batch = self._chosen()
            if batch or not self._loading:
                return batch

    def _chosen(self) -> list[ScheduledChunk]:
        self._now = self._clock()
        self._batch = {}
        self.budget.begin()
        first, rest = self._ready()
        newcomers, late = self._brief
        if not any(first):
            first, rest, newcomers = rest, ([], []), late
        self._decode(first[0])
        self.budget.open(len(self._batch), newcomers)
        self._read(first[1])
        for seq in sorted(rest[0], key=lambda s: s.served_at):
            if seq.block_table and self._holds(seq) and self.budget.add_decode():
                self._take(seq, len(seq.tokens) - 1, 1)
        self._read(rest[1])
        return list(self._batch.values())

    def lengthened(self, chunk: ScheduledChunk, draft: list[int]) -> ScheduledChunk:
        """Let a step verify guesses, as many as find room in blocks that nobody holds or will miss."""
        room = self._blocks.stretch(chunk.seq, len(chunk.seq.tokens) + len(draft)) - len(chunk.seq.tokens)
        return ScheduledChunk(chunk.seq, chunk.first, chunk.count, tuple(draft[:room]))

    def learn(self, batch: list[ScheduledChunk], seconds: float) -> list[Sequence]:
        """Update costs and shares by a step of `seconds`, before its tokens are chosen.

        Return the sequences whose prompts are computed in full since then.
        """
        prefilled = []
        decodes = [chunk for chunk in batch if chunk.decodes]
        chunks = [chunk for chunk in batch if not chunk.decodes]
        cuts = [(chunk.first, chunk.count, chunk.seq.request.reads_logits) for chunk in chunks]
        self._queued_s += seconds if self.waiting else 0.0
        share = self.budget.learn(len(decodes), cuts, sum(len(chunk.draft) for chunk in batch), seconds)
        for group, part in ((decodes, share), (chunks, 1.0 - share)):
            rows = sum(chunk.num_tokens for chunk in group)
            for chunk in group:
                self._shares.charge(chunk.seq.request.tenant, seconds * part * chunk.num_tokens / rows)
                if chunk.last and not chunk.seq.begun:
                    chunk.seq.begun = True
                    prefilled.append(chunk.seq)
                    self._begins.append(self._queued_s)
        return prefilled

    def _ready(self) -> tuple[tuple[list[Sequence], list[Sequence]], tuple[list[Sequence], list[Sequence]]]:
        """Sort out who can go on: (newest tokens, prompts) of those who go first, and of the others."""
        now = self._now
        decodes, prompts, late_decodes, late_prompts = [], [], [], []
        ahead: list[RemainingPrefill] = []
        brief = [0, 0]
        self._going = 0
        lent_at = 0.0 if all(map(self._yields, self._live)) else self._lent_at
        for seq in self._live:
            left = len(seq.tokens) - seq.num_computed_tokens
            if not seq.ready:
                continue
            self._going += bool(seq.block_table)
            if now - seq.served_at > PATIENCE_S and self._promoted not in self._live and self._yields(seq):
                self._promoted = seq
            first = not self._yields(seq)
            if seq.block_table and left <= 1 and seq.request.sink is None:
                first = first or now - seq.served_at > AGE_S
                (decodes if first else late_decodes).append(seq)
            else:
                first = first or now - max(seq.served_at, lent_at) > AGE_S
                ahead.append(self._left_of(seq))
                brief[not first] += not seq.begun and ahead[-1].seconds <= BRIEF_S
                (prompts if first else late_prompts).append(seq)
        self._ahead, self._brief = ahead, brief
        self._slowed = self._slowing(len(decodes) + len(late_decodes), brief[not prompts])
        return (decodes, prompts), (late_decodes, late_prompts)

    def _yields(self, seq: Sequence) -> bool:
        """Tell whether interactive work goes before it."""
        return seq.request.priority == "batch" and seq is not self._promoted

    def _left_of(self, seq: Sequence) -> RemainingPrefill:
        rows = len(seq.tokens) - seq.num_computed_tokens
        seconds = self.budget.expected(seq.num_computed_tokens, rows, seq.request.reads_logits)
        return RemainingPrefill(self._yields(seq), seq.request.tenant, rows, seconds)

    def _slowing(self, decodes: int, newcomers: int) -> float:
        if not decodes:
            return 1.0
        lone = self.budget.cost.seconds(decodes)
        limit = self.budget.limit(lone, newcomers)
        return limit / max(limit - lone, 0.01 * limit)

    # --- the wait ----------------------------------------------------------------------------------

    def wait(self, request: Request | None = None, entered: Iterable[Sequence] = ()) -> float:
        """Return the seconds until a request that came now would begin, by what is read before it; None: behind all.

        `entered`: those that came since the latest step. Where the queue moves more slowly than it could be read, for
        want of blocks, by how fast it moved.
        """
        ahead = [*self._ahead, *map(self._left_of, entered)]
        if request is not None:
            batch, tenant, rows = request.priority == "batch", request.tenant, len(request.prompt)
            turn = (batch, self._shares.used(tenant), rows)
            ahead = [u for u in ahead if (u.batch, self._shares.used(u.tenant), u.rows) <= turn]
        each = (self._queued_s - self._begins[0]) / len(self._begins)
        return max(sum(u.seconds for u in ahead) * self._slowed, min(len(ahead), self.waiting) * each)

    # --- newest tokens -----------------------------------------------------------------------------

    def _decode(self, decodes: list[Sequence]) -> None:
        """Take the newest token of every running answer; of more than a step holds, those who waited longest."""
        if len(decodes) > self.budget.most_rows:
            decodes = sorted(decodes, key=lambda s: s.served_at)[: self.budget.most_rows]
        for seq in decodes:
            if seq.block_table and self._holds(seq):
                self._take(seq, len(seq.tokens) - 1, 1)

    def _take(self, seq: Sequence, first: int, count: int) -> None:
        known = self._batch.get(seq)
        if known is not None:
            first, count = known.first, known.count + count
        self._batch[seq] = ScheduledChunk(seq, first, count)
        seq.served_at = self._now

    # --- prompts -----------------------------------------------------------------------------------

    def _read(self, prompts: list[Sequence]) -> None:
        """Give out the step's room for prompts."""
        if not prompts:
            return
        used = self._shares.used
        order = sorted(prompts, key=lambda s: (used(s.request.tenant), self._remaining_prefill(s), s.number))
        oldest = min(
            (s for s in order if s.request.tenant == order[0].request.tenant), key=lambda s: s.number
        )
        if oldest is not order[0]:
            self._owed = min(self._owed + OLDEST_SHARE * self.budget.room, self.budget.room)
            if self._owed >= self.budget.seconds(oldest.num_computed_tokens, TILE) and self._read_some(
                oldest, self._owed, least=False
            ):
                self._owed = 0.0
        self._full = False
        for seq in order:
            if self._full or self.budget.left < 1:
                return
            self._read_some(seq, self.budget.room)

    def _remaining_prefill(self, seq: Sequence) -> int:
        """Return the rows until it has read its prompt, or what somebody waits for it to read."""
        end = seq.wanted if seq.wanted > seq.num_computed_tokens else len(seq.tokens)
        return end - seq.num_computed_tokens

    def _read_some(self, seq: Sequence, seconds: float, least: bool = True) -> bool:
        """Take as many rows of a prompt as fit into so many seconds; False if none."""
        budget, logits = self.budget, seq.request.reads_logits
        taken = self._batch.get(seq)
        done = taken.first + taken.count if taken else seq.num_computed_tokens
        left = len(seq.tokens) - done
        if logits and not budget.logits_left:  # others need none
            return False
        self._full = left > 0 and not budget.rows(done, left, logits, seconds, least)
        if left < 1 or self._full or not self._holds(seq):
            return False
        if taken is None:  # others' blocks may have brought it forward, and an interrupt holds it back
            done = min(seq.num_computed_tokens, len(seq.tokens) - 1)
        count = budget.rows(done, len(seq.tokens) - done, logits, seconds, least)
        if count:
            self._take(seq, done, count)
            budget.spend(done, count, logits)
            self._lent_at = self._now if self._yields(seq) else self._lent_at
        return count > 0

    def _leader(self, seq: Sequence) -> Sequence | None:
        """Return a sequence that computes what `seq` begins with, worth waiting for; it then reads up to there."""
        known = seq.leader
        if known is not None and known.num_computed_tokens < seq.led and self._leads(known, seq):
            return known
        seq.leader = None
        if seq.parent is not None and self._leads(seq.parent, seq):
            seq.leader, seq.led = seq.parent, len(seq.parent.request.prompt)
        if seq.leader is None:
            seq.led = self._blocks.match(seq)
            for other in self._reading():
                if self._leads(other, seq) and other.tokens[:BLOCK_TOKENS] == seq.tokens[:BLOCK_TOKENS]:
                    same = min(common_prefix(other.tokens, seq.tokens), len(seq.tokens) - 1)
                    same -= same % BLOCK_TOKENS
                    if same > max(seq.led, other.num_computed_tokens):
                        seq.leader, seq.led = other, same
        if seq.leader is not None:
            wanted = seq.leader.wanted
            seq.leader.wanted = min(wanted, seq.led) if wanted > seq.leader.num_computed_tokens else seq.led
        return seq.leader

    def _reading(self) -> list[Sequence]:
        return [s for s in self._live if s.block_table and len(s.tokens) - s.num_computed_tokens > 1]

    def _leads(self, other: Sequence, seq: Sequence) -> bool:
        """Tell whether `other` is about to read a prompt whose blocks `seq` may share."""
        return (
            other is not seq
            and other in self._live
            and bool(other.block_table)
            and len(other.tokens) - other.num_computed_tokens > 1
            and other.ready
            and other.request.sink is None
            and other.request.salt == seq.request.salt
            and self._yields(other) <= self._yields(seq)
        )

    # --- blocks ------------------------------------------------------------------------------------

    def _rank(self, seq: Sequence) -> tuple[bool, int]:
        """Order by who may take another's blocks: a fixed order, so that nobody takes them back."""
        return self._yields(seq), seq.number

    def _holds(self, seq: Sequence) -> bool:
        """Make sure all tokens of `seq` have blocks, at others' expense if the rules allow it."""
        if not seq.block_table or seq.loading:
            self._count(seq, -1)
            held = self._admit(seq)
            self._count(seq, 1)
            return held
        if self._blocks.grow(seq, len(seq.tokens)):
            return True
        need = self._blocks.missing(seq, len(seq.tokens))
        return self._make_room(seq, need, younger=True) and self._blocks.grow(seq, len(seq.tokens))

    def _admit(self, seq: Sequence) -> bool:
        """Let a sequence begin if there is room for it and for what the running ones will need soon."""
        blocks = self._blocks
        others = self.running  # it is counted out itself
        if self._is_hopeless(seq):
            return False
        if self._going >= self.budget.most_decodes() or (others and not seq.loading and self._leader(seq)):
            return False
        if not blocks.reserve(seq) and not self._make_reservable(seq):
            return False
        seq.loading = not self._share(seq)
        if seq.loading:  # others' steps go on meanwhile
            self._loading = True
            return False
        need = blocks.missing(seq, len(seq.tokens))
        spare = GROWTH * others + min(GROWTH << seq.preempted, blocks_for(seq.left)) if others else 0
        fits = need + spare <= blocks.available or self._make_room(seq, need, self._impatient(seq))
        if fits and blocks.grow(seq, len(seq.tokens)):
            self._going += 1
            seq.queue_s = seq.queue_s if seq.preempted else self._now - seq.arrived
            return True
        blocks.release(seq)
        seq.refused, seq.refused_at = blocks.available, self._now
        return False

    def _is_hopeless(self, seq: Sequence) -> bool:
        """Tell whether nothing can have changed since it found no room: looking again costs a walk of the tree."""
        if self._blocks.available > seq.refused or self._now - seq.refused_at > RETRY_S:
            return False
        return not any(s.pending for s in self._live if s.block_table)

    def _impatient(self, seq: Sequence) -> bool:
        return self._now - seq.arrived > BYPASS_S

    def _share(self, seq: Sequence) -> bool:
        """Let a sequence begin behind what is known of its tokens; False if the disk has more of them."""
        parent = seq.parent
        if parent in self._live and parent.num_computed_tokens >= len(parent.request.prompt):
            self._blocks.fork(parent, seq)
            seq.num_cached_tokens = 0 if seq.generated else seq.num_computed_tokens
            return True
        return seq.request.sink is not None or self._blocks.adopt(seq, hurry=bool(self._batch))

    def _make_room(self, seq: Sequence, need: int, younger: bool) -> bool:
        """Have `need` blocks free, at others' expense: of those whose reader stalled, of the youngest batch work, of
        the youngest after `seq`. False, and nobody is harmed, if all of them do not hold enough."""
        victims, chosen = self._victims(seq, younger), []
        free = self._blocks.available
        if free + sum(len(s.block_table) for s in victims) < need:
            return False
        held = Counter(block for s in self._live for block in s.block_table)
        for victim in victims:
            if free >= need:
                break
            chosen.append(victim)
            held.subtract(victim.block_table)
            free += sum(not held[block] for block in victim.block_table)
        if free < need:
            return False
        for victim in chosen:
            self._preempt(victim)
        return True

    def _victims(self, seq: Sequence, younger: bool) -> list[Sequence]:
        """List at whose expense `seq` may have room, in turn: stalled readers' answers, and those behind it in rank."""
        rank = self._rank(seq)
        holders = [s for s in self._live if s.block_table and s is not seq]
        stalled = {s for s in holders if s.pending and self._now - s.pending_since > STALL_S}
        behind = [s for s in holders if self._rank(s) > rank and (younger or self._yields(s) > rank[0])]
        return sorted({*stalled, *behind}, key=lambda s: (s in stalled, self._rank(s)), reverse=True)

    def _make_reservable(self, seq: Sequence) -> bool:
        """Reserve what the cache keeps of `seq` besides blocks, by the rules of `_make_room`."""
        victims = self._victims(seq, self._impatient(seq))
        if not self._blocks.reservable(seq, victims):
            return False
        for victim in victims:
            self._preempt(victim)
            if self._blocks.reserve(seq):
                break
        return True

    def _preempt(self, seq: Sequence) -> None:
        self._batch.pop(seq, None)
        self._count(seq, -1)
        self._blocks.release(seq)
        self._count(seq, 1)
        seq.loading = False
        seq.preempted += 1
        self.preemptions += 1
