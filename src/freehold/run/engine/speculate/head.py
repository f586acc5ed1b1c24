"""Drafts with a model's own head, which reads the target's last rows and predicts the token after the next.

Knows the head's plan, its small cache, and for each sequence the target's rows that it did not read yet; decides no
length. Row p of the head pairs the target's hidden row p with token p + 1. A sequence's rows may begin anywhere: its
positions count from there, as rotary angles depend on distances alone. So a prefix hit, a fork or a long absence leaves
no gap, only a head that sees less; no answer depends on it. Drafted rows are written again once their tokens are known,
from the target's own rows, so nothing has to be rolled back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.run.engine.cache.blocks import blocks_for, common_prefix
from freehold.run.engine.sampler import choose, log_sum_exp
from freehold.run.engine.schedule.budget import PREFILL_TOKENS, StepCost
from freehold.run.engine.sequence import ScheduledChunk, Sequence
from freehold.run.engine.speculate.draft_model import MAX_JOINED, drafting_seconds
from freehold.run.models.load import DraftingHead, LoadedModel

F32 = NDArray[np.float32]

# Rows of a sequence that wait for the head, at most; of a prompt its last ones. A row is as wide as the model: 4 MB
# for 1,024 rows of 1,024 values, and the target computes its last layer for these rows instead of for one.
MOST_WAITING = 1024


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
    waiting: F32 | None = None  # the target's rows after those
    arrived: _Arrived | None = None
    table: list[int] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)  # tokens drafted in this round
    last: F32 | None = None  # the head's own row that the next drafted token is computed from

    @property
    def next(self) -> int:
        """The position of the sequence whose row is missing."""
        return self.start + self.read + (0 if self.waiting is None else len(self.waiting))


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
        self._cost = StepCost()
        self._share = head.bytes_per_token / max(target.bytes_per_token, 1)
        self.spent = 0.0  # seconds, as such steps usually take them, since the caller last set it to 0

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
        following = np.array(seq.tokens[first + 1 : first + same + 1])
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
        rows = rows[skip:]
        waiting = rows if follower.waiting is None else np.concatenate([follower.waiting, rows])
        if len(waiting) > MOST_WAITING:
            self._begin(follower, first + skip + len(rows) - MOST_WAITING)
            waiting = waiting[-MOST_WAITING:]
        follower.waiting = waiting

    def _begin(self, follower: _Follower, start: int) -> None:
        follower.start, follower.read, follower.waiting = start, 0, None

    # --- drafting ----------------------------------------------------------------------------------

    def seconds(self, tokens: int, target_step: float) -> float:
        """Return what computing this many rows takes; `target_step` is what a step of the target takes.

        Estimated by bytes until enough was measured.
        """
        return drafting_seconds(self._cost, tokens, self._share * target_step)

    def missing(self, seq: Sequence) -> int:
        """Return how many rows must be computed before a token is drafted."""
        follower = self._followers.get(seq)
        if follower is None:
            return 1
        self._settle(seq, follower)
        return 1 if follower.waiting is None else max(len(follower.waiting), 1)

    def follow(self, seq: Sequence, ahead: int) -> int:
        """Read the rows that wait, all but the newest; return how many tokens may be drafted then, at most `ahead`.

        0 where the target's newest row did not come, or where no block is left.
        """
        follower = self._followers.get(seq)
        if follower is None:
            return 0
        self._settle(seq, follower)
        follower.chain.clear()
        if follower.waiting is None or follower.next != len(seq.tokens) - 1 or ahead < 1:
            return 0
        if not self._grow(follower, follower.read + len(follower.waiting) + ahead):
            return 0
        while len(follower.waiting) > MAX_JOINED:
            count = min(len(follower.waiting) - 1, PREFILL_TOKENS)
            self._run([(follower, self._tokens(seq, follower, count), follower.waiting[:count])], want=False)
            follower.read, follower.waiting = follower.read + count, follower.waiting[count:]
        return ahead

    def advance(self, seqs: list[Sequence]) -> list[tuple[int, float]]:
        """Draft one more token of each sequence; return it with the probability the head gives it."""
        parts = []
        for seq in seqs:
            follower = self._followers[seq]
            if not follower.chain:
                assert follower.waiting is not None, "follow() came first"
                tokens = self._tokens(seq, follower, len(follower.waiting))
                parts.append((follower, tokens, follower.waiting))
            else:
                assert follower.last is not None
                parts.append((follower, follower.chain[-1:], follower.last[None]))
        logits, hidden = self._run(parts, want=True)
        drafted = []
        for seq, (follower, _, rows), row, last in zip(seqs, parts, logits, hidden, strict=True):
            if not follower.chain:  # these rows are the target's
                follower.read, follower.waiting = follower.read + len(rows), None
            request, before = seq.request, [*seq.tokens, *follower.chain]
            token = choose(row, before, request.sampling, request.seed, self.model.tokens, None).id
            follower.last = last
            follower.chain.append(token)
            drafted.append((token, math.exp(float(row[token]) - log_sum_exp(row, len(before)))))
        return drafted

    def _tokens(self, seq: Sequence, follower: _Follower, count: int) -> list[int]:
        """Return the tokens that belong to the next `count` rows: each row's following one."""
        at = follower.start + follower.read + 1
        return seq.tokens[at : at + count]

    def _run(self, parts: Ordered[tuple[_Follower, list[int], F32]], *, want: bool) -> tuple[F32, F32]:
        """Compute rows of several sequences; with `want`, the logits and the head's own row after the last of each."""
        started = perf_counter()
        counts = [len(tokens) for _, tokens, _ in parts]
        ends = np.cumsum(counts, dtype=np.int32) - 1 if want else np.zeros(0, np.int32)
        hidden = np.empty((len(ends), self._plan.hidden_width), np.float32)
        table = np.zeros((len(parts), max(len(f.table) for f, _, _ in parts)), np.int32)
        for row, (follower, _, _) in zip(table, parts, strict=True):
            row[: len(follower.table)] = follower.table
        firsts = [f.read + max(len(f.chain) - 1, 0) for f, _, _ in parts]
        logits, _ = self._plan.run(
            np.array([t for _, tokens, _ in parts for t in tokens], np.int32),
            np.concatenate([np.arange(at, at + n) for at, n in zip(firsts, counts, strict=True)]).astype(
                np.int32
            ),
            np.repeat(np.arange(len(parts), dtype=np.int32), counts),
            table,
            ends,
            hidden_rows=ends,
            hidden=hidden,
            features=np.ascontiguousarray(np.concatenate([rows for _, _, rows in parts])),
        )
        self.model.check()
        tokens = sum(counts)
        self._cost.add(tokens, perf_counter() - started)
        self.spent += self._cost.seconds(tokens)
        return logits, hidden

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
