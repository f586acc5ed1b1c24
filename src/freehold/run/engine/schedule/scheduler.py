"""Decides which tokens of which sequences the next step computes.

Knows sequences, blocks, priorities and clients; knows no text and no weights. One budget a step, no phases: the
newest tokens of running answers first, prefill with what is left. Clients share steps (shares.py), slots and blocks. Of
the prompts those of the client with the least service go first, of one client's the shortest, and a quarter goes to
the oldest. Batch work gets what interactive work leaves, and a turn now and then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from freehold._native import BLOCK_TOKENS
from freehold.run.engine.cache.blocks import BlockManager, blocks_for, common_prefix
from freehold.run.engine.schedule.budget import (
    BRIEF_S,
    BURST_S,
    MAX_NUM_BATCHED_TOKENS,
    TILE,
    Budget,
    Prefill,
)
from freehold.run.engine.schedule.shares import (
    GRAMMAR_S,
    DecodeTurns,
    LiveSequences,
    Newcomers,
    Shares,
    grammar_s,
    own_tokens,
)
from freehold.run.engine.sequence import Request, ScheduledChunk, Sequence

OLDEST_SHARE = 0.25  # of a step's room for prefill: the oldest prompt has a quarter of the speed at least
AGE_S = 1.0  # batch work that was not scheduled for so long goes first for one step,
PATIENCE_S = 60.0  # and for good after so long, one such sequence at a time
ANSWER = 256  # tokens that an answer is expected to have at most, whatever its limit
GROWTH = 1  # blocks that each running sequence is expected to need soon; doubled each time it was preempted


@dataclass(slots=True)
class Runnable:
    """Sequences that can continue: those that decode, and those in prefill."""

    decodes: list[Sequence] = field(default_factory=list)
    prompts: list[Sequence] = field(default_factory=list)
    newcomers: dict[str, int] = field(default_factory=dict)  # brief ones of the latter, at their first token
    prompt_s: dict[str, float] = field(default_factory=dict)  # what the latter take, by client

    @property
    def unanswered_s(self) -> dict[str, float]:
        """Seconds of prompts, by client, of those without a running answer."""
        answered = {seq.request.client for seq in self.decodes}
        return {client: seconds for client, seconds in self.prompt_s.items() if client not in answered}


class Scheduler:
    """Chooses each step's chunks among the live sequences."""

    def __init__(
        self,
        blocks: BlockManager,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        clock: Callable[[], float] = lambda: 0.0,
        target_itl_s: float | None = None,
        assumed_token_s: float = 0.0,
        span_rows: int = 0,
    ) -> None:
        """`span_rows`: by how many tokens a step may grow so as not to cut a picture: PromptPictures.spans."""
        self._blocks, self._span_rows = blocks, span_rows
        self._clock = clock
        self.budget = Budget(max_num_batched_tokens, target_itl_s, assumed_token_s)
        self._shares = Shares()
        self.live = LiveSequences()
        self._batch: dict[Sequence, ScheduledChunk] = {}  # the step under construction
        self.preemption = Preemption(self.live, blocks, self._batch)
        self._turns = DecodeTurns(self._shares.used, self.budget.cost.between)
        self._prefixes = SharedPrefixes(self.live, blocks)
        self.wait = WaitEstimate(self.live, self.budget, self._shares)
        self._now = 0.0  # when the step under construction was begun
        self._background_at = (
            0.0  # when batch work's prefill was last scheduled: those that wait share one turn
        )
        self._active = 0  # sequences that hold blocks and whose readers keep up,
        self._active_of: dict[str, int] = {}  # those of each client,
        self._slots = 0  # and how many there may be
        self._grammar_s: dict[str, float] = {}  # what grammars took in this step, by client
        self._stalled = False  # a sequence that holds blocks waits for its reader
        self._loading = False  # a sequence takes blocks from disk
        self._full = False  # no token of the next prompt fits into the step
        self._owed_s = 0.0  # seconds of prefill that the oldest prompt is owed
        self._newcomers = Newcomers()
        self._shared_s = inf  # a step's limit, where several clients share it and it is to be short

    def add(self, seq: Sequence) -> None:
        """Add a sequence; it gets blocks when it is first scheduled."""
        self.live.add(seq, self._clock())
        if seq.parent is None and seq.request.sink is None:
            seq.known_tokens = self._blocks.match(seq)
        answer_s = min(seq.left, ANSWER) * self.budget.cost.seconds(1)
        seq.expected_s = answer_s + self.budget.expected(0, own_tokens(seq), seq.request.all_logits)
        seq.turn = self._shares.enter(seq.request.client, seq.expected_s)

    def remove(self, seq: Sequence, keep: bool = True) -> None:
        """Drop a sequence that ended or was cancelled; `keep`: its full blocks stay cached while there is room."""
        if seq in self.live:
            self.live.remove(seq)
            self._shares.leave(seq.request.client, seq.expected_s)
            (self._blocks.retire if keep else self._blocks.release)(seq)

    def expired(self) -> list[Sequence]:
        """Return the sequences whose deadline has passed."""
        return self.live.expired(self._clock()) if self.live.has_deadlines else []

    # --- the step ----------------------------------------------------------------------------------

    def schedule(self) -> list[ScheduledChunk]:
        """Choose the next step's chunks; empty when no sequence can continue."""
        while True:
            self._loading = False
            batch = self._choose()
            if batch or not self._loading:
                return batch

    def _choose(self) -> list[ScheduledChunk]:
        self._now = self._clock()
        self._batch.clear()
        self._grammar_s.clear()
        first, background = self._ready()
        if not first.decodes and not first.prompts:
            first, background = background, Runnable()
        self._shared_s = self._newcomers.choose(
            first.prompts,
            first.unanswered_s if first.prompts else {},
            self.budget.shared_s() if self._shares.clients > 1 else inf,
            self._now,
        )
        self.budget.begin(self._shared_s)
        burst = self._burst(first)
        self._decode(first, BURST_S if burst > 1 else 0.0)
        choice_s = sum(seq.choice_s for seq in self._batch)
        turns = self._newcomers.turns
        self.budget.open(len(self._batch), burst, self._turns.limit_s, choice_s, bool(turns))
        room, others = self.budget.room, first.prompts
        if turns:
            others = [seq for seq in others if seq.request.client not in turns]
            self._prefill_newcomers([seq for seq in first.prompts if seq.request.client in turns])
        if others and self._shared_s < inf:
            self._newcomers.spend(room, room - self.budget.room)
        self._prefill(others)
        for seq in sorted(background.decodes, key=lambda s: s.scheduled_at):
            if seq.block_table and self._has_blocks(seq) and self.budget.add_decode(grammar_s(seq)):
                self._take(seq, len(seq.tokens) - 1, 1)
        self._prefill(background.prompts)
        return list(self._batch.values())

    def with_draft(self, chunk: ScheduledChunk, draft: list[int]) -> ScheduledChunk:
        """Add draft tokens to a chunk, as many as find room in blocks that no sequence holds or will miss."""
        room = self._blocks.stretch(chunk.seq, len(chunk.seq.tokens) + len(draft)) - len(chunk.seq.tokens)
        return ScheduledChunk(chunk.seq, chunk.first, chunk.count, tuple(draft[:room]))

    def learn(self, batch: list[ScheduledChunk], seconds: float) -> list[Sequence]:
        """Update costs and shares by a step of `seconds`, before its tokens are chosen.

        Return the sequences whose prompts are computed in full since then.
        """
        prefilled = []
        decodes = [chunk for chunk in batch if chunk.decodes]
        chunks = [chunk for chunk in batch if not chunk.decodes]
        prefills = [Prefill(chunk.first, chunk.count, chunk.seq.request.all_logits) for chunk in chunks]
        self.wait.stepped(seconds)
        drafted = sum(len(chunk.draft) for chunk in batch)
        share = self.budget.learn(len(decodes), prefills, drafted, seconds)
        for group, part in ((decodes, share), (chunks, 1.0 - share)):
            tokens = sum(chunk.num_tokens for chunk in group)
            for chunk in group:
                self._shares.charge(chunk.seq.request.client, seconds * part * chunk.num_tokens / tokens)
                if chunk.last and not chunk.seq.prefilled:
                    chunk.seq.prefilled = True
                    prefilled.append(chunk.seq)
                    self.wait.began()
        return prefilled

    def has_grammar_time(self, seq: Sequence) -> bool:
        """Tell whether a sequence's grammar may be asked in this step, or those of its client took too long in it."""
        return self._grammar_s.get(seq.request.client, 0.0) <= GRAMMAR_S

    def charge_grammar(self, seq: Sequence, seconds: float) -> None:
        """Add what a sequence's grammar took in this step to its client's share."""
        client = seq.request.client
        self._grammar_s[client] = self._grammar_s.get(client, 0.0) + seconds
        self._shares.charge(client, seconds)

    def charge_choice(self, seq: Sequence, seconds: float) -> None:
        """Add what choosing a sequence's tokens took in this step, without its grammar, to its client's share."""
        seq.choice_s = seconds
        self._shares.charge(seq.request.client, seconds)

    def _ready(self) -> tuple[Runnable, Runnable]:
        """Sort the sequences that can continue into those that go first and the others."""
        now, live = self._now, self.live
        first, rest = Runnable(), Runnable()
        ahead: list[RemainingPrefill] = []
        self._active, self._active_of, self._stalled = 0, {}, False
        background_at = 0.0 if all(map(live.is_background, live)) else self._background_at
        for seq in live:
            if not seq.ready:
                self._stalled = self._stalled or bool(seq.block_table)
                continue
            if seq.block_table:
                self._count_active(seq)
            unscheduled_s = now - seq.scheduled_at
            if unscheduled_s > PATIENCE_S and live.promoted not in live and live.is_background(seq):
                live.promoted = seq
            background = live.is_background(seq)
            left = len(seq.tokens) - seq.num_computed_tokens
            # The last token of a prompt is left out: its reader waits for a first token, while answers take turns.
            if seq.block_table and left <= seq.prefilled and seq.request.sink is None:
                turn = rest if background and unscheduled_s <= AGE_S else first
                turn.decodes.append(seq)
                continue
            turn = rest if background and now - max(seq.scheduled_at, background_at) <= AGE_S else first
            turn.prompts.append(seq)
            ahead.append(self.wait.remaining(seq))
            client, seconds = seq.request.client, ahead[-1].seconds
            turn.prompt_s[client] = turn.prompt_s.get(client, 0.0) + seconds
            if not seq.prefilled and seconds <= BRIEF_S:
                turn.newcomers[client] = turn.newcomers.get(client, 0) + 1
        decodes = len(first.decodes) + len(rest.decodes)
        burst = self._burst(first if first.prompts else rest)
        self.wait.update(ahead, self.budget.slowdown(decodes, burst))
        return first, rest

    def _burst(self, runnable: Runnable) -> int:
        """Return how many prompts make a burst: not those of clients with more service than one that only decodes.

        There is none while shared steps are short.
        """
        newcomers = runnable.newcomers
        if not newcomers or self._shared_s < inf:
            return 0
        used = self._shares.used
        decoding = {seq.request.client for seq in runnable.decodes} - newcomers.keys()
        least = min(map(used, decoding), default=inf)
        return sum(count for client, count in newcomers.items() if used(client) <= least)

    # --- newest tokens -----------------------------------------------------------------------------

    def _decode(self, runnable: Runnable, step_s: float) -> None:
        """Take the newest token of every running answer, or of those whose turn it is.

        Where none of those finds a block, others have the turn: they may hold the blocks that these wait for.
        """
        decodes = runnable.decodes
        waiting = {seq.request.client for seq in runnable.prompts}
        most = self.budget.max_num_batched_tokens
        if not waiting <= {seq.request.client for seq in decodes}:  # others' prompts need tokens too
            most = max(most - max(most // 4, 1), 1)
        new_s = self._newcomers.seconds
        while decodes and not self._batch:
            chosen = self._turns.choose(decodes, most, waiting, step_s, self._shared_s, new_s)
            for seq in chosen:
                if seq.block_table and self._has_blocks(seq):
                    self._take(seq, len(seq.tokens) - 1, 1)
            without = set(chosen)
            decodes = [seq for seq in decodes if seq.block_table and seq not in without]

    def _take(self, seq: Sequence, first: int, count: int) -> None:
        known = self._batch.get(seq)
        if known is not None:
            first, count = known.first, known.count + count
        self._batch[seq] = ScheduledChunk(seq, first, count)
        seq.scheduled_at = self._now

    # --- prefill -----------------------------------------------------------------------------------

    def _prefill_newcomers(self, prompts: list[Sequence]) -> None:
        """Compute prompts of clients that ask little, each to its end where that is near."""
        turns = self._newcomers.turns
        self._slots = self.budget.max_decodes()
        self._full = False
        for seq in sorted(prompts, key=lambda s: (turns[s.request.client], self._urgency(s), s.number)):
            if self._full or self.budget.left < 1:
                return
            self._prefill_some(seq, self.budget.room, self._newcomers.more_s)

    def _prefill(self, prompts: list[Sequence]) -> None:
        """Give out the step's room for prefill."""
        if not prompts:
            return
        self._slots = self.budget.max_decodes()
        used = self._shares.used
        order = sorted(prompts, key=lambda s: (used(s.request.client), self._urgency(s), s.number))
        client = order[0].request.client
        oldest = min((s for s in order if s.request.client == client), key=lambda s: s.number)
        if oldest is not order[0]:
            self._owed_s = min(self._owed_s + OLDEST_SHARE * self.budget.room, self.budget.room)
            tile_s = self.budget.seconds(oldest.num_computed_tokens, TILE)
            if self._owed_s >= tile_s and self._prefill_some(oldest, self._owed_s, minimum=False):
                self._owed_s = 0.0
        self._full = False
        for seq in order:
            if self._full or self.budget.left < 1:
                return
            self._prefill_some(seq, self.budget.room)

    def _urgency(self, seq: Sequence) -> int:
        """Return the tokens until its prompt is computed, or the prefix that another sequence waits for."""
        end = seq.awaited_until if seq.awaited_until > seq.num_computed_tokens else len(seq.tokens)
        return end - seq.num_computed_tokens

    def _prefill_some(self, seq: Sequence, seconds: float, more_s: float = 0.0, minimum: bool = True) -> bool:
        """Take as many tokens of a prompt as fit into `seconds`; False if none.

        With `more_s`, all of them if so much longer or one tile more suffices: the rest would wait for a whole step.
        """
        budget, logits = self.budget, seq.request.all_logits
        # Asked first, for it costs least: hundreds may wait for a slot or a block.
        if (not seq.block_table or seq.loading) and not self._may_begin(seq):
            return False
        taken = self._batch.get(seq)
        done = taken.first + taken.count if taken else seq.num_computed_tokens
        left = len(seq.tokens) - done
        if logits and not budget.logits_left:  # other prompts need none
            return False
        self._full = left > 0 and not budget.tokens(done, left, logits, seconds, minimum)
        if left < 1 or self._full or not self._has_blocks(seq):
            return False
        if taken is None:  # shared blocks may have advanced it, and after an interrupt no token is left
            done = min(seq.num_computed_tokens, len(seq.tokens) - 1)
        left = len(seq.tokens) - done
        count = budget.tokens(done, left, logits, seconds, minimum)
        if more_s and count < left <= budget.left:
            whole = budget.tokens(done, left, logits, seconds + more_s, minimum) == left
            count = left if whole or (left - count <= TILE and not logits) else count
        pictures = seq.request.pictures
        if taken and pictures is not None and taken.first < pictures.apart <= done:
            return False  # text follows rows that another plan computes in a chunk of its own
        if count and pictures is not None and (pictures.spans or pictures.apart):
            count = pictures.uncut(done, count)
            if count > budget.left + self._span_rows:  # there is room for one span beyond the step's tokens
                return False
        if count:
            self._take(seq, done, count)
            budget.spend(done, count, logits)
            if self.live.is_background(seq):
                self._background_at = self._now
        return count > 0

    # --- blocks ------------------------------------------------------------------------------------

    def _has_blocks(self, seq: Sequence) -> bool:
        """Make sure all tokens of `seq` have blocks, by preemption if the rules allow it."""
        if not seq.block_table or seq.loading:
            self.live.count(seq, -1)
            admitted = self._admit(seq)
            self.live.count(seq, 1)
            return admitted
        blocks, tokens = self._blocks, len(seq.tokens)
        if blocks.grow(seq, tokens):
            return True
        need = blocks.missing(seq, tokens)
        return self.preemption.make_room(seq, need, self._now, inf) and blocks.grow(seq, tokens)

    def _admit(self, seq: Sequence) -> bool:
        """Let a sequence begin if there is room for it and for what the running ones will need soon."""
        blocks = self._blocks
        others = self.live.running  # without `seq`, which is not counted meanwhile
        # A sink takes over no cached prefix, so it waits for none.
        if others and seq.request.sink is None and not seq.loading and self._prefixes.provider(seq):
            return False
        waited_s = self._now - seq.arrived_at
        if not blocks.reserve(seq) and not self.preemption.make_reservable(seq, self._now, waited_s):
            return False
        seq.loading = not self._adopt(seq)
        if seq.loading:  # other sequences' steps continue meanwhile
            self._loading = True
            return False
        need = blocks.missing(seq, len(seq.tokens))
        spare = GROWTH * others + min(GROWTH << seq.preempted, blocks_for(seq.left)) if others else 0
        fits = need + spare <= blocks.available or self.preemption.make_room(seq, need, self._now, waited_s)
        if fits and blocks.grow(seq, len(seq.tokens)):
            self._count_active(seq)
            seq.queue_s = seq.queue_s if seq.preempted else self._now - seq.arrived_at
            return True
        blocks.release(seq)
        seq.retry_above, seq.retry_at = blocks.available, self._now + RETRY_S
        return False

    def _may_begin(self, seq: Sequence) -> bool:
        """Tell whether there is a slot for a sequence, in all or in its client's part of them.

        One that found no room is tried again once something can have changed: a retry costs a walk of the prefix tree.
        """
        if self._active >= self._slots:
            part = max(self._slots // self._shares.clients, 1)
            if self._active_of.get(seq.request.client, 0) >= part:
                return False
        return self._blocks.available > seq.retry_above or self._now > seq.retry_at or self._stalled

    def _count_active(self, seq: Sequence) -> None:
        client = seq.request.client
        self._active += 1
        self._active_of[client] = self._active_of.get(client, 0) + 1

    def _adopt(self, seq: Sequence) -> bool:
        """Let a sequence begin after its cached prefix; False if the disk has more of it."""
        parent = seq.parent
        if (
            parent is not None
            and not seq.loading  # then it holds blocks that the disk gave it
            and parent in self.live
            and parent.num_computed_tokens >= len(parent.request.prompt)
        ):
            self._blocks.fork(parent, seq)
            seq.num_cached_tokens = 0 if seq.generated else seq.num_computed_tokens
            return True
        return seq.request.sink is not None or self._blocks.adopt(seq, hurry=bool(self._batch))


# --- how long a request that came now would wait for its first token --------------------------------

FIRST_TOKENS = 32  # latest first tokens that say how fast the queue moves


class RemainingPrefill(NamedTuple):
    """What is left to compute of a prompt, and by what its turn is decided."""

    background: bool
    client: str
    tokens: int
    seconds: float


class WaitEstimate:
    """Updated by every step; any thread may ask for `seconds`."""

    def __init__(self, live: LiveSequences, budget: Budget, shares: Shares) -> None:
        self._live, self._budget, self._shares = live, budget, shares
        self._ahead: list[RemainingPrefill] = []
        self._slowdown = 1.0
        self._queued_s = 0.0  # seconds of steps while a sequence waited to begin
        self._begins: deque[float] = deque(
            [0.0], maxlen=FIRST_TOKENS
        )  # `_queued_s` at the latest first tokens

    def remaining(self, seq: Sequence) -> RemainingPrefill:
        """Return what is left of a sequence's prefill, with what it is expected to take."""
        done = seq.num_computed_tokens if seq.block_table else seq.known_tokens
        tokens = len(seq.tokens) - done
        seconds = self._budget.expected(done, tokens, seq.request.all_logits)
        return RemainingPrefill(self._live.is_background(seq), seq.request.client, tokens, seconds)

    def update(self, ahead: list[RemainingPrefill], slowdown: float) -> None:
        """Replace what is to be computed; `slowdown`: how many times longer it takes beside running answers."""
        self._ahead, self._slowdown = ahead, slowdown

    def stepped(self, seconds: float) -> None:
        """Count a step of this many seconds, if a sequence waited meanwhile."""
        self._queued_s += seconds if self._live.waiting else 0.0

    def began(self) -> None:
        """Note that a sequence gets its first token."""
        self._begins.append(self._queued_s)

    def seconds(self, request: Request | None = None, entered: Iterable[Sequence] = ()) -> float:
        """Return the seconds until `request` would begin; None: one queued after all others.

        `entered`: sequences that came since the latest step. Where blocks are scarce the queue moves more slowly
        than prompts could be computed; then by how fast it moved.
        """
        ahead = [*self._ahead, *map(self.remaining, entered)]
        if request is not None:
            used = self._shares.used
            turn = (request.priority == "batch", used(request.client), len(request.prompt))
            ahead = [each for each in ahead if (each.background, used(each.client), each.tokens) <= turn]
        pace = (self._queued_s - self._begins[0]) / len(self._begins)
        return max(
            sum(each.seconds for each in ahead) * self._slowdown, min(len(ahead), self._live.waiting) * pace
        )


# --- takes blocks from running sequences for one that needs them ------------------------------------
# A preempted sequence keeps its tokens and is computed again later, to the same bits. None is preempted
# unless all that may be hold enough together.

# For so long others may pass one that finds no room; then those that come after it are preempted: those of its own
# client after BYPASS_S, of other clients after RETRY_S.
BYPASS_S = 2.0
RETRY_S = 0.25  # until then it is not tried again unless blocks became free
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


# --- lets a sequence wait for another that is computing the same prefix -----------------------------
# Instead of computing it beside it.


class SharedPrefixes:
    """Finds who computes a prefix; the provider's prefill then takes on the urgency of those that wait for it."""

    def __init__(self, live: LiveSequences, blocks: BlockManager) -> None:
        self._live, self._blocks = live, blocks

    def provider(self, seq: Sequence) -> Sequence | None:
        """Return a sequence that computes more of what `seq` begins with than the cache holds, if there is one."""
        known = seq.prefix_provider
        if known is not None and known.num_computed_tokens < seq.shared_until and self._provides(known, seq):
            return known
        seq.prefix_provider = None
        if seq.parent is not None and self._provides(seq.parent, seq):
            seq.prefix_provider, seq.shared_until = seq.parent, len(seq.parent.request.prompt)
        if seq.prefix_provider is None:
            self._find(seq)
        provider = seq.prefix_provider
        if provider is not None:
            awaited = provider.awaited_until
            waits = awaited > provider.num_computed_tokens
            provider.awaited_until = min(awaited, seq.shared_until) if waits else seq.shared_until
        return provider

    def _find(self, seq: Sequence) -> None:
        """Choose the live sequence that shares most whole blocks with `seq`, beyond those in the cache."""
        seq.shared_until = self._blocks.match(seq)
        for other in self._live:
            if self._provides(other, seq) and other.tokens[:BLOCK_TOKENS] == seq.tokens[:BLOCK_TOKENS]:
                same = min(common_prefix(other.tokens, seq.tokens), len(seq.tokens) - 1)
                same -= same % BLOCK_TOKENS
                if same > max(seq.shared_until, other.num_computed_tokens):
                    seq.prefix_provider, seq.shared_until = other, same

    def _provides(self, other: Sequence, seq: Sequence) -> bool:
        """Tell whether `other` is in prefill and `seq` may share its blocks."""
        return (
            other is not seq
            and bool(other.block_table)
            and len(other.tokens) - other.num_computed_tokens > 1
            and other in self._live
            and other.ready
            and other.request.sink is None
            and other.request.salt == seq.request.salt
            and self._live.is_background(other) <= self._live.is_background(seq)
        )
