"""Recurrent layers (Mamba-2, gated DeltaNet, short convolutions): one state a sequence, snapshots after some blocks.

A state is what all such layers of a model keep after exactly p tokens; it has a slot of the kind's memory. A hit
is good only where a snapshot was kept at exactly p. A slot that something else may still read (a snapshot, the state a
fork began with) is not written: a step reads one slot and writes another, so adopting, forking and taking snapshots
copy nothing. Within a step a sequence's rows are cut into pieces, each of which reads a slot and writes a slot: at the
points where a snapshot is due, and before draft tokens. Of a short draft each token's state is kept
while slots are to spare. So refused drafts cost no state; of a longer draft those accepted before the first refused one
are computed again in the next step.
Every live sequence reserves one slot. What is left holds snapshots, the longest unused taken back first.
Knows sequences, blocks and slots; knows no values and no tree.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field

import numpy as np

from freehold._native import BLOCK_TOKENS
from freehold.run.engine.cache import I32, CacheKind
from freehold.run.engine.sequence import Request, Sequence

# Tokens between two snapshots of a prompt: what a prompt that departs computes again is half of it on average, and
# writing a state takes about as long as computing one token.
SNAPSHOT_TOKENS = 512
# Draft tokens after each of which a state is kept where slots are to spare: what is accepted of a short draft is then
# not computed again. Longer drafts, of a text that repeats itself, are mostly accepted whole.
SHORT_DRAFT = 3
PROMPT_SHARE = 4  # one slot in this many for one prompt's regular snapshots, and as many for its turns'


@dataclass(slots=True)
class _State:
    """What a sequence holds. Each slot named here is counted once among its users."""

    every: int  # tokens between two regular snapshots
    points: frozenset[int]  # positions where a snapshot is due besides
    tokens: int = 0  # leading tokens that `slot` holds the state after
    slot: int = -1  # -1: no tokens yet
    spare: int = -1  # for the next step's draft tokens
    newest: int = -1  # the block of its answer after which alone a snapshot is kept
    end: int = -1  # of a step in progress: the slot that holds the state after its last known token
    writes: list[tuple[int, int]] = field(default_factory=list)  # and all it writes: tokens, slot
    taken: dict[int, int] = field(
        default_factory=dict
    )  # snapshots the tree does not know yet: tokens -> slot

    @property
    def own(self) -> int:
        """The slot from which it continues."""
        return self.slot if self.end < 0 else self.end

    def slots(self) -> set[int]:
        """Return all slots it uses."""
        written = (slot for _, slot in self.writes)
        return {self.slot, self.spare, *written, *self.taken.values()} - {-1}


class Recurrent(CacheKind):
    """`count` slots for states."""

    name, paged = "recurrent", False

    def __init__(self, count: int, every: int = SNAPSHOT_TOKENS) -> None:
        self.count = count
        self._every = every
        self._most = max(count // PROMPT_SHARE, 1)
        self._users = [0] * count  # sequences
        self._block = [-1] * count  # the block after which a slot is a snapshot
        self._kept: dict[int, tuple[int, int]] = {}  # the slot after a block, and the tokens of that block
        self._free = list(range(count - 1, -1, -1))
        self._idle: OrderedDict[int, None] = (
            OrderedDict()
        )  # snapshots that no sequence uses, the longest unused first
        self._seqs: dict[Sequence, _State] = {}

    @property
    def cached(self) -> int:
        """Snapshots that no sequence uses."""
        return len(self._idle)

    @property
    def live(self) -> int:
        """Slots that sequences use, each counted once."""
        return self.count - len(self._free) - len(self._idle)

    # --- admission ---------------------------------------------------------------------------------

    def reserve(self, seq: Sequence, blocks: int) -> bool:
        """Set aside one slot for the state of a sequence."""
        if seq not in self._seqs:
            if not self._has_spare():
                return False
            every = max(self._every, len(seq.request.prompt) // self._most)
            points = snapshot_points(seq.request, self._most)
            self._seqs[seq] = _State(-(-every // BLOCK_TOKENS) * BLOCK_TOKENS, points)
        return True

    def reservable(self, seq: Sequence, blocks: int, released: Iterable[Sequence]) -> bool:
        """Tell whether `reserve` would succeed once other sequences were released."""
        gone = set(released)
        left = [state for s, state in self._seqs.items() if s not in gone]
        users = Counter(slot for state in left for slot in state.slots())
        without = sum(users[state.own] != 1 for state in left)
        return seq in self._seqs or self.count - len(users) > without

    def release(self, seq: Sequence) -> None:
        """Take back a sequence's state; snapshots after its blocks stay while there is room."""
        state = self._seqs.pop(seq, None)
        if state is not None:
            for slot in state.slots():
                self._drop(slot)

    # --- hits --------------------------------------------------------------------------------------

    def usable(self, blocks: Ordered[int], tokens: int, parent: Sequence | None = None) -> int:
        """Return `tokens` where a state is kept after exactly those, else up to the last snapshot before."""
        whole = tokens // BLOCK_TOKENS
        if self._source(blocks, tokens, parent) < 0:
            while whole and self._source(blocks, whole * BLOCK_TOKENS) < 0:
                whole -= 1
            return whole * BLOCK_TOKENS
        return tokens

    def _source(self, blocks: Ordered[int], tokens: int, parent: Sequence | None = None) -> int:
        """Return a slot that holds the state after `tokens` and that one more sequence may read, -1 for none."""
        if not tokens:
            return -1
        kept = self._kept.get(blocks[(tokens - 1) // BLOCK_TOKENS])
        if kept is not None and kept[1] == (tokens - 1) % BLOCK_TOKENS + 1 and self._can_share(kept[0]):
            return kept[0]
        running = self._seqs[parent] if parent is not None else None
        if running is not None and running.tokens == tokens and self._can_share(running.slot):
            return running.slot
        return -1

    def begin(self, seq: Sequence, blocks: Ordered[int], parent: Sequence | None = None) -> None:
        """Let a sequence read the state after its computed tokens: a snapshot, or its parent's own."""
        state, tokens = self._seqs[seq], seq.num_computed_tokens
        state.slot, state.tokens = self._source(blocks, tokens, parent), tokens
        if tokens:
            self._use(state.slot)

    # --- steps -------------------------------------------------------------------------------------

    def stretch(self, seq: Sequence) -> bool:
        """Provide a slot for the state after draft tokens, so that the one before them stays."""
        state = self._seqs[seq]
        if state.spare < 0 and self._has_spare():
            state.spare = self._take()
        return state.spare >= 0

    def prepare(self, seq: Sequence, first: int, count: int, drafts: int) -> None:
        """Choose what a step's pieces write: snapshots that are due, the state after it, the state after drafts."""
        state, end = self._seqs[seq], first + count
        assert state.tokens == first and not state.writes
        for at in range((first // BLOCK_TOKENS + 1) * BLOCK_TOKENS, end, BLOCK_TOKENS):
            if self._is_due(seq, state, at) and self._has_spare():
                state.writes.append((at, self._take()))
        state.end = self._writable(state.slot)
        state.writes.append((end, state.end))
        if drafts:
            for at in range(end + 1, end + drafts) if drafts <= SHORT_DRAFT else ():
                if self._has_spare():
                    state.writes.append((at, self._take()))
            state.writes.append((end + drafts, state.spare))
            state.spare = -1

    def _writable(self, slot: int) -> int:
        """Return the slot to write the state in that follows one in `slot`: that one, unless it is still needed."""
        if slot >= 0 and self._users[slot] == 1:
            if self._block[slot] < 0:
                return slot
            if not self._has_spare():  # no other for this sequence: the snapshot goes
                self._unbind(slot)
                return slot
        return self._take()

    def commit(self, seq: Sequence, tokens: int) -> int:
        """Continue with the last state up to `tokens` that was written or is still there; -1 if there is none."""
        state = self._seqs[seq]
        used, written = state.slots(), [slot for _, slot in state.writes]
        reached = [write for write in state.writes if write[0] <= tokens]
        at, slot = -1, -1
        if reached:
            at, slot = reached[-1]
        elif state.tokens <= tokens and state.slot not in written:
            at, slot = state.tokens, state.slot
        state.taken = {p: s for p, s in reached if s != slot and self._is_due(seq, state, p)}
        state.tokens, state.slot, state.spare, state.end, state.writes = max(at, 0), slot, -1, -1, []
        for unused in used - state.slots():
            self._drop(unused)
        return at

    def table(self, seqs: Ordered[Sequence], block_tables: I32) -> I32:
        """Return a step's pieces in order: int32 [pieces, 5] of sequence, first token, end, slot read, slot written.

        A piece that reads slot -1 begins with a state of zeros.
        """
        rows: list[tuple[int, int, int, int, int]] = []
        for i, seq in enumerate(seqs):
            state = self._seqs[seq]
            first, read = state.tokens, state.slot
            for end, slot in state.writes:
                rows.append((i, first, end, read, slot))
                first, read = end, slot
        return np.array(rows, np.int32).reshape(-1, 5)

    # --- snapshots ---------------------------------------------------------------------------------

    def _is_due(self, seq: Sequence, state: _State, at: int) -> bool:
        """Tell whether a snapshot is wanted at a block's end: regularly, at a turn's end, where a sequence waits."""
        return at % BLOCK_TOKENS == 0 and (
            at % state.every == 0 or at in state.points or at == seq.awaited_until
        )

    def enter(self, seq: Sequence, block: int, tokens: int, last: bool = False) -> None:
        """Keep the state after a block of the tree if it is due; of a sequence that ends, in any case.

        Of an answer's blocks the newest one's is kept besides: after a preemption or a restart it continues there.
        """
        state = self._seqs[seq]
        slot = state.taken.pop(tokens, -1)
        due = last or self._is_due(seq, state, tokens)
        if slot >= 0:
            self._bind(slot, block, tokens)
            self._drop(slot)
        elif tokens == state.tokens and (due or tokens > len(seq.request.prompt)):
            self._bind(state.slot, block, tokens)
            if not due:
                self.leave(state.newest)
                state.newest = block

    def leave(self, block: int) -> None:
        """Let go of the snapshot after a block."""
        if block in self._kept:
            self._unbind(self._kept[block][0])

    def place(self, block: int) -> int:
        """Return the slot of the snapshot after a full block, -1 for none."""
        slot, tokens = self._kept.get(block, (-1, 0))
        return slot if tokens == BLOCK_TOKENS else -1

    def provide(self, block: int) -> int:
        """Give a full block of the tree a slot for the state after it, which was read from disk."""
        if block not in self._kept:
            slot = self._take()
            self._bind(slot, block, BLOCK_TOKENS)
            self._drop(slot)
        return self._kept[block][0]

    def _bind(self, slot: int, block: int, tokens: int) -> None:
        if block not in self._kept and self._block[slot] < 0:
            self._block[slot] = block
            self._kept[block] = slot, (tokens - 1) % BLOCK_TOKENS + 1

    def _unbind(self, slot: int) -> None:
        del self._kept[self._block[slot]]
        self._block[slot] = -1
        if not self._users[slot]:
            del self._idle[slot]
            self._free.append(slot)

    # --- slots -------------------------------------------------------------------------------------

    def _has_spare(self) -> bool:
        """Tell whether a slot is left beside one for each sequence that has none to itself."""
        users = self._users
        without = sum(state.own < 0 or users[state.own] > 1 for state in self._seqs.values())
        return len(self._free) + len(self._idle) > without

    def _can_share(self, slot: int) -> bool:
        """Tell whether one more sequence may read a slot: its only user would need another to write in."""
        return self._users[slot] != 1 or self._has_spare()

    def _take(self) -> int:
        if not self._free:
            self._unbind(next(iter(self._idle)))
        slot = self._free.pop()
        self._users[slot] = 1
        return slot

    def _use(self, slot: int) -> None:
        self._users[slot] += 1
        self._idle.pop(slot, None)

    def _drop(self, slot: int) -> None:
        self._users[slot] -= 1
        if self._users[slot]:
            return
        if self._block[slot] >= 0:
            self._idle[slot] = None
        else:
            self._free.append(slot)


def snapshot_points(request: Request, most: int) -> frozenset[int]:
    """Return the block ends where a later prompt is likely to depart from this one.

    They are the last ones before the end of the first turn (system prompt and tools), of the `most` latest turns, and
    before the prompt's last token. A turn ends with a token that would stop an answer.
    """
    turns = [i for i, token in enumerate(request.prompt, 1) if token in request.stop_ids]
    ends = [*turns[:1], *turns[-most:], len(request.prompt) - 1]
    return frozenset(end // BLOCK_TOKENS * BLOCK_TOKENS for end in ends if end >= BLOCK_TOKENS)
