"""Whatever sequences do in whatever order, the pool's books balance and shared blocks give a recompute's bits."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from freehold._native import BLOCK_TOKENS as SIZE
from freehold.engine.cache import blocks as blocks_module
from freehold.engine.cache import tier as tier_module
from freehold.engine.cache.blocks import common_prefix
from freehold.engine.schedule.chunk import ScheduledChunk
from freehold.engine.sequence import Sequence
from freehold.models.load import LoadedModel
from tests.engine.rig import Rig, check_books, sequence

POOL, LONGEST = 10, 130  # five blocks at most, so that three sequences are too many
ROWS = 64  # of a step, where window layers have blocks of their own
TOKEN = st.integers(5, 7)  # few, so that prompts agree by chance inside a block
BEGINNINGS = [[5 + i * k % 11 for i in range(100)] for k in (1, 2)]
PROMPTS = st.builds(
    lambda begin, length, own: [*begin[:length], *own],
    st.sampled_from(BEGINNINGS),
    st.sampled_from([0, 5, 31, 32, 33, 64, 70, 96]),
    st.lists(TOKEN, min_size=1, max_size=12),
)


class Pool(RuleBasedStateMachine):
    """Sequences come, are computed piece by piece, fork, guess, yield and end."""

    model: LoadedModel
    oracle: Rig
    rows: dict[tuple[int, ...], np.ndarray]  # what the oracle computed, by tokens
    on_disk: bool
    window_blocks: int  # 0: window layers keep all positions

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory() if self.on_disk else None
        self.gone: list[Rig] = []
        self.start()

    def start(self) -> None:
        self.rig = Rig(
            self.model, POOL, Path(self.folder.name) if self.folder else None, self.window_blocks, ROWS
        )
        self.live: list[Sequence] = []
        self.seen: dict[str, list[list[int]]] = {"": [], "a": []}  # what each tenant ever computed

    # --- rules -----------------------------------------------------------------------------------------

    @rule(tokens=PROMPTS, tenant=st.sampled_from(["", "a"]))
    def come(self, tokens: list[int], tenant: str) -> None:
        seq = sequence(tokens, tenant)
        self.check_match(seq)
        self.live.append(seq)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), rows=st.sampled_from([1, 20, 64, 200]))
    def step(self, data: st.DataObject, rows: int) -> None:
        """Compute some rows of some sequences; who finds no room makes the youngest others yield."""
        chosen = data.draw(st.lists(st.sampled_from(self.live), unique_by=id, min_size=1, max_size=3))
        batch = [ScheduledChunk(seq, seq.num_computed_tokens, 0) for seq in chosen if self.place(seq, chosen)]
        batch = [self.cut(chunk.seq, rows) for chunk in batch if chunk.seq.block_table]
        if not batch:
            return
        for chunk, logits in zip(batch, self.rig.run(batch), strict=True):
            self.seen[chunk.seq.request.tenant].append(chunk.seq.tokens[: chunk.seq.num_computed_tokens])
            if chunk.last:
                assert np.array_equal(logits[-1], self.expected(chunk.seq.tokens))

    @precondition(lambda self: any(self.decodes(s) for s in self.live))
    @rule(data=st.data(), made=st.lists(TOKEN, min_size=1, max_size=9), wrong=st.integers(0, 40))
    def guess(self, data: st.DataObject, made: list[int], wrong: int) -> None:
        """Verify guesses of which the first hold, and the others are garbage left in the blocks."""
        seq = data.draw(st.sampled_from([s for s in self.live if self.decodes(s)]))
        if not self.place(seq, [seq]):
            return
        room = self.rig.blocks.stretch(seq, len(seq.tokens) + len(made) + wrong) - len(seq.tokens)
        draft = (*made, *[9] * wrong)[:room]
        held = min(len(made), room)
        first = seq.num_computed_tokens
        self.rig.blocks.prepare(seq, first, 1, len(draft))
        self.rig.runner.run([ScheduledChunk(seq, first, 1, draft)], choose=False)
        seq.tokens += made[:held]
        self.rig.blocks.publish(seq, first + 1 + max(held - 1, 0))
        self.seen[seq.request.tenant].append(seq.tokens[: seq.num_computed_tokens])

    @precondition(lambda self: any(self.finished(s) for s in self.live))
    @rule(data=st.data(), token=TOKEN)
    def make(self, data: st.DataObject, token: int) -> None:
        seq = data.draw(st.sampled_from([s for s in self.live if self.finished(s)]))
        seq.tokens.append(token)

    @precondition(lambda self: any(s.num_computed_tokens for s in self.live))
    @rule(data=st.data(), token=st.none() | TOKEN)
    def fork(self, data: st.DataObject, token: int | None) -> None:
        parent = data.draw(st.sampled_from([s for s in self.live if s.num_computed_tokens]))
        tokens = parent.tokens if token is None else [*parent.tokens[: parent.num_computed_tokens], token]
        child = sequence(tokens, parent.request.tenant)
        if self.rig.blocks.reserve(child):
            self.rig.blocks.fork(parent, child)
            self.live.append(child)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def yield_blocks(self, data: st.DataObject) -> None:
        self.rig.blocks.release(data.draw(st.sampled_from(self.live)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.live))
        self.live.remove(seq)
        self.rig.blocks.retire(seq)

    @precondition(lambda self: self.on_disk)
    @rule()
    def restart(self) -> None:
        """Lose all but the disk; what is still being written to it arrives at any time, as from another engine."""
        self.gone.append(self.rig)
        self.start()

    # --- what must hold --------------------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        check_books(self.rig.blocks, self.live)

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        for seq in self.live:
            self.rig.blocks.retire(seq)
        check_books(self.rig.blocks, [])
        assert self.rig.blocks.available == POOL
        self.rig.blocks.close()
        if self.folder:
            for rig in [*self.gone, self.rig]:
                if rig.disk:
                    rig.disk.flush(60)  # or it writes into a folder that is being removed
            self.folder.cleanup()

    def check_match(self, seq: Sequence) -> None:
        """A tenant finds no more than it ever computed, and all that its live sequences share."""
        match, tenant = self.rig.blocks.match(seq), seq.request.tenant
        known = (common_prefix(seq.tokens[:-1], tokens) for tokens in self.seen[tenant])
        assert match <= max(known, default=0)
        for other in self.live:
            if other.request.tenant == tenant and not self.window_blocks:
                same = common_prefix(seq.tokens[:-1], other.tokens[: other.num_computed_tokens])
                assert match >= same // SIZE * SIZE

    # --- means -----------------------------------------------------------------------------------------

    def place(self, seq: Sequence, keep: list[Sequence]) -> bool:
        blocks = self.rig.blocks
        while not blocks.reserve(seq):
            if not self.others_yield(keep):
                return False
        if not seq.block_table:
            expected = blocks.match(seq)
            while not blocks.adopt(seq, hurry=True):
                pass
            assert seq.num_computed_tokens >= expected // SIZE * SIZE
            assert seq.num_computed_tokens <= expected or self.on_disk
        while not blocks.grow(seq, len(seq.tokens)):
            if not self.others_yield(keep):
                return False
        return True

    def others_yield(self, keep: list[Sequence]) -> bool:
        victims = [s for s in self.live if s.block_table and s not in keep]
        if victims:
            self.rig.blocks.release(victims[-1])
        return bool(victims)

    def cut(self, seq: Sequence, rows: int) -> ScheduledChunk:
        first = min(seq.num_computed_tokens, len(seq.tokens) - 1)
        return ScheduledChunk(
            seq, first, min(rows, len(seq.tokens) - first, ROWS if self.window_blocks else rows)
        )

    def expected(self, tokens: list[int]) -> np.ndarray:
        key = tuple(tokens)
        if key not in self.rows:
            self.rows[key] = self.oracle.alone(tokens)
        return self.rows[key]

    @staticmethod
    def finished(seq: Sequence) -> bool:
        return seq.num_computed_tokens == len(seq.tokens) < LONGEST

    @staticmethod
    def decodes(seq: Sequence) -> bool:
        return seq.num_computed_tokens == len(seq.tokens) - 1 and len(seq.tokens) < LONGEST - 10


@pytest.mark.parametrize(
    ("name", "on_disk", "window_blocks"),
    [("model", True, 0), ("sliding", False, 0), ("sliding", False, 9), ("sliding", True, 9)],
)
def test_books_balance_and_hits_are_a_recomputes_bits(
    name: str,
    on_disk: bool,
    window_blocks: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tier_module, "KEPT_BLOCKS", 1)
    monkeypatch.setattr(blocks_module, "LOAD_S", 0.0)
    loaded: LoadedModel = request.getfixturevalue(name)
    facts = {
        "model": loaded,
        "oracle": Rig(loaded, 8),
        "rows": {},
        "on_disk": on_disk,
        "window_blocks": window_blocks,
    }
    run_state_machine_as_test(
        type("Machine", (Pool,), facts),
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
