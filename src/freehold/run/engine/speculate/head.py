"""Drafts with a model's own head, which reads the target's last rows and predicts the token after the next.

Knows the head's plan, its small cache, and for each sequence the target's rows that it did not read yet; decides no
length. A token is chosen in the plan, with the sequence's temperature and noise, among the first ids: those that hold
most of what its text was made of, since reading all of the output matrix may cost more than the rest of the head. Row p
of the head pairs the target's hidden row p with token p + 1. A sequence's rows may begin anywhere: its
positions count from there, as rotary angles depend on distances alone. So a prefix hit, a fork or a long absence leaves
no gap, only a head that sees less; no answer depends on it. Drafted rows are written again once their tokens are known,
from the target's own rows, so nothing has to be rolled back.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.run.engine.cache.blocks import blocks_for, common_prefix
from freehold.run.engine.sampler import non_finite
from freehold.run.engine.schedule.budget import PREFILL_TOKENS, StepCost
from freehold.run.engine.sequence import ScheduledChunk, Sequence
from freehold.run.engine.speculate.draft import HEAD_PRIOR, AcceptanceRates
from freehold.run.engine.speculate.draft_model import MAX_JOINED, drafting_seconds
from freehold.run.models.load import DraftingHead, LoadedModel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Rows of a sequence that wait for the head, at most, and a quarter more; of a prompt its last ones. A row is as wide as
# the model: 4 MB for 1,024 rows of 1,024 values, and the target computes its last layer for these rows instead of one.
MOST_WAITING = 1024

# A vocabulary made by merging pairs is sorted by how often they occur: its first eighth holds most of a text. How many
# eighths pay is counted, of the latest tokens of a sequence: a text in another script, or of digits, is somewhere else.
EIGHTHS = 8
LEAST_IDS = 4096  # as many take no longer than one product of a layer: fewer are not worth a rejected draft
RECENT_TOKENS = 512  # after which what was counted of a sequence weighs half
PRIOR_TOKENS = 16.0  # that what is known of all sequences weighs in the counts of one


@dataclass(slots=True)
class _Arrived:
    """Rows of one step: where they begin, the tokens they were computed for, which may be rejected drafts."""

    first: int
    tokens: list[int]
    rows: F32


@dataclass(slots=True)
class _Follower:
    """What the head keeps of a sequence."""

    start: int = 0  # position of the sequence that is position 0 here
    read: int = 0  # rows in the head's cache that are the target's
    waiting: list[F32] = field(default_factory=list)  # the target's rows after those, in pieces,
    waits: int = 0  # and how many they are
    arrived: _Arrived | None = None
    table: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)  # tokens drafted in this round
    last: F32 | None = None  # the head's own row that the next drafted token is computed from
    used: F64 = field(default_factory=lambda: np.zeros(EIGHTHS))  # its latest tokens, by eighth of the ids

    @property
    def next(self) -> int:
        """The position of the sequence whose row is missing."""
        return self.start + self.read + self.waits

    def joined(self) -> F32:
        """Return the rows that wait, in one piece. They are joined once they are read, not with every step."""
        if len(self.waiting) > 1:
            self.waiting = [np.concatenate(self.waiting)]
        return self.waiting[0]

    def pass_on(self, count: int) -> None:
        """Take the first rows as read."""
        left = self.waits - count
        self.read, self.waiting, self.waits = self.read + count, [self.joined()[count:]] if left else [], left


class HeadDrafts:
    """A model's head as a source of drafts, with a cache of as many blocks as its target has."""

    def __init__(
        self, target: LoadedModel, head: DraftingHead, blocks: int, threads: native.Threads, kv_type: str
    ) -> None:
        self.model = target
        self._cache = head.new_cache(blocks, kv_type)
        self._plan = head.build(self._cache, PREFILL_TOKENS, threads)
        self._free = list(range(blocks))
        self._followers: dict[Sequence, _Follower] = {}
        self._costs: dict[int, StepCost] = {}  # by the ids that tokens are chosen among
        step, matrix = max(target.bytes_per_token, 1), head.weights.ends["head"].nbytes
        self._matrix_share, self._own_share = matrix / step, (head.bytes_per_token - matrix) / step
        eighths = [-(-target.tokens * (i + 1) // EIGHTHS) for i in range(EIGHTHS)]
        self._ends = [min(max(end, LEAST_IDS), target.tokens) for end in eighths]
        self._used = np.zeros(EIGHTHS)  # the latest tokens of all sequences; before any, the first eighth's
        self._used[0] = 1.0
        self.ids = self._ends[0]  # that the latest token was chosen among
        self.rates = AcceptanceRates(HEAD_PRIOR, 2.0, by_place=True)
        self.spent = 0.0  # seconds, as such steps usually take them, since the caller last set it to 0
        self._warm()

    def _warm(self) -> None:
        """Compute a token that no sequence has: the first step fetches the weights, and its time would say nothing."""
        one = np.zeros(1, np.int32)
        row = np.zeros((1, self._plan.hidden_width), np.float32)
        self._plan.run(one, one, one, one[None], one[:0], [(0, 0.0, 0, 0)], self.ids, features=row)

    # --- the target's rows -------------------------------------------------------------------------

    def wanted(self, chunk: ScheduledChunk) -> range:
        """Return which rows of a chunk the head will read."""
        if chunk.seq.request.sink is not None:
            return range(0)
        oldest = len(chunk.seq.tokens) - MOST_WAITING
        return range(min(max(oldest - chunk.first, 0), chunk.num_tokens), chunk.num_tokens)

    def keep(self, chunk: ScheduledChunk, places: range, rows: F32) -> None:
        """Take the target's rows of a chunk, before its draft is verified."""
        follower = self._followers.setdefault(chunk.seq, _Follower())
        self._settle(chunk.seq, follower)
        tokens = chunk.tokens[places.start : places.stop]
        follower.arrived = _Arrived(chunk.first + places.start, tokens, rows)

    def _settle(self, seq: Sequence, follower: _Follower) -> None:
        """Let the rows that arrived wait, those of rejected drafts left out."""
        arrived, follower.arrived = follower.arrived, None
        if arrived is None:
            return
        first = arrived.first
        same = common_prefix(arrived.tokens, seq.tokens[first : first + len(arrived.tokens)])
        rows = arrived.rows[:same]
        following = np.array(seq.tokens[first + 1 : first + same + 1], np.int64)
        self._count(follower, following)
        strange = np.flatnonzero(following >= self.model.vocab)  # rows of pictures have no embedding
        if len(strange):
            cut = int(strange[-1]) + 1
            first, rows = first + cut, rows[cut:]
        skip = follower.next - first
        if skip < 0 or len(strange):
            self._begin(follower, first)
            skip = 0
        if skip >= len(rows):
            return
        follower.waiting.append(rows[skip:])
        follower.waits += len(rows) - skip
        if follower.waits > MOST_WAITING + MOST_WAITING // 4:  # not with every row, as the others are copied
            latest = follower.joined()[-MOST_WAITING:].copy()
            self._begin(follower, first + len(rows) - MOST_WAITING)
            follower.waiting, follower.waits = [latest], MOST_WAITING

    def _begin(self, follower: _Follower, start: int) -> None:
        follower.start, follower.read, follower.waiting, follower.waits = start, 0, [], 0

    def _count(self, follower: _Follower, tokens: I64) -> None:
        """Count which eighths of the ids a text was made of."""
        tokens = tokens[tokens < self.model.tokens]
        counts = np.bincount(tokens * EIGHTHS // self.model.tokens, minlength=EIGHTHS)
        for used in (follower.used, self._used):
            used += counts
            if used.sum() > RECENT_TOKENS:
                used /= 2

    def _reach(self, follower: _Follower) -> int:
        """Return among how many of the first ids a sequence's tokens are chosen.

        Those that hold a share of its text, which count as far as drafts are accepted, less what reading them costs.
        """
        used = follower.used + self._used * (PRIOR_TOKENS / self._used.sum())
        gained = np.cumsum(used) / used.sum() * self.rates.overall
        return self._ends[int((gained - np.arange(1, EIGHTHS + 1) * self._matrix_share / EIGHTHS).argmax())]

    # --- drafting ----------------------------------------------------------------------------------

    def _cost_of(self, ids: int) -> StepCost:
        return self._costs.setdefault(ids, StepCost())

    def seconds(self, tokens: int, target_step: float) -> float:
        """Return what computing this many rows takes; `target_step` is what a step of the target takes.

        Estimated by bytes until enough was measured.
        """
        share = self._own_share + self._matrix_share * self.ids / self.model.tokens
        return drafting_seconds(self._cost_of(self.ids), tokens, share * target_step)

    def missing(self, seq: Sequence) -> int:
        """Return how many rows must be computed before a token is drafted."""
        follower = self._followers.get(seq)
        if follower is None:
            return 1
        self._settle(seq, follower)
        return max(follower.waits, 1)

    def follow(self, seq: Sequence, ahead: int) -> int:
        """Read the rows that wait, all but the newest; return how many tokens may be drafted then, at most `ahead`.

        0 where the target's newest row did not come, or where no block is left.
        """
        follower = self._followers.get(seq)
        if follower is None:
            return 0
        self._settle(seq, follower)
        follower.chain.clear()
        if not follower.waiting or follower.next != len(seq.tokens) - 1 or ahead < 1:
            return 0
        if not self._grow(follower, follower.read + follower.waits + ahead):
            return 0
        while follower.waits > MAX_JOINED:
            count = min(follower.waits - 1, PREFILL_TOKENS)
            self._run([(follower, self._tokens(seq, follower, count), follower.joined()[:count])], ())
            follower.pass_on(count)
        return ahead

    def advance(self, seqs: list[Sequence]) -> list[tuple[int, float]]:
        """Draft one more token of each sequence; its place says how likely it is, so no probability comes with it."""
        parts = []
        for seq in seqs:
            follower = self._followers[seq]
            if not follower.chain:
                assert follower.waiting, "follow() came first"
                parts.append((follower, self._tokens(seq, follower, follower.waits), follower.joined()))
            else:
                assert follower.last is not None
                parts.append((follower, follower.chain[-1:], follower.last[None]))
        self.ids = max(self._reach(follower) for follower, _, _ in parts)
        chosen, hidden = self._run(parts, seqs)
        for seq, (follower, _, rows), token, last in zip(seqs, parts, chosen, hidden, strict=True):
            if token < 0:
                raise non_finite(len(seq.tokens) + len(follower.chain))
            if not follower.chain:  # these rows are the target's
                follower.pass_on(len(rows))
            follower.last = last
            follower.chain.append(int(token))
        return [(follower.chain[-1], 0.0) for follower, _, _ in parts]

    def _tokens(self, seq: Sequence, follower: _Follower, count: int) -> list[int]:
        """Return the tokens that belong to the next `count` rows: each row's following one."""
        at = follower.start + follower.read + 1
        return seq.tokens[at : at + count]

    def _run(
        self, parts: Ordered[tuple[_Follower, list[int], F32]], seqs: Ordered[Sequence]
    ) -> tuple[I64, F32]:
        """Compute rows of several sequences; of those in `seqs` choose a token, and return the head's own last row.

        A token is -1 where a logit was not finite.
        """
        started = perf_counter()
        counts = [len(tokens) for _, tokens, _ in parts]
        ends = np.cumsum(counts, dtype=np.int32)[: len(seqs)] - 1
        hidden = np.empty((len(ends), self._plan.hidden_width), np.float32)
        table = np.zeros((len(parts), max(len(f.table) for f, _, _ in parts)), np.int32)
        for row, (follower, _, _) in zip(table, parts, strict=True):
            row[: len(follower.table)] = follower.table
        firsts = [f.read + max(len(f.chain) - 1, 0) for f, _, _ in parts]
        choices = [
            (int(end), seq.request.sampling.temperature, seq.request.seed, len(seq.tokens) + len(f.chain))
            for seq, (f, _, _), end in zip(seqs, parts, ends, strict=False)
        ]
        _, chosen = self._plan.run(
            np.array([t for _, tokens, _ in parts for t in tokens], np.int32),
            np.concatenate([np.arange(at, at + n) for at, n in zip(firsts, counts, strict=True)]).astype(
                np.int32
            ),
            np.repeat(np.arange(len(parts), dtype=np.int32), counts),
            table,
            ends[:0],
            choices,
            self.ids,
            hidden_rows=ends,
            hidden=hidden,
            features=np.ascontiguousarray(np.concatenate([rows for _, _, rows in parts])),
        )
        self.model.check()
        tokens, cost = sum(counts), self._cost_of(self.ids)
        cost.add(tokens, perf_counter() - started)
        self.spent += cost.seconds(tokens)
        return chosen, hidden

    # --- blocks ------------------------------------------------------------------------------------

    def _grow(self, follower: _Follower, rows: int) -> bool:
        """Provide blocks for this many rows."""
        need = blocks_for(rows) - len(follower.table)
        if need > len(self._free):
            return False
        follower.table += [self._free.pop() for _ in range(need)]
        return True

    def forget(self, seq: Sequence) -> None:
        """Take back what a sequence that ended has."""
        follower = self._followers.pop(seq, None)
        if follower is not None:
            self._free += follower.table
