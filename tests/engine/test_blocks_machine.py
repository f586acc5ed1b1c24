"""In any order of operations the pool's books balance, and shared blocks give the bits of a recompute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from freehold.run.engine.cache import blocks as blocks_module
from freehold.run.engine.cache import disk as tier_module
from freehold.run.engine.cache.blocks import blocks_for, common_prefix
from freehold.run.engine.sequence import ScheduledChunk, Sequence
from freehold.run.models.load import LoadedModel
from tests.engine.rig import Rig, Stepper, check_books, sequence
from tests.engine.scripted import ScriptedRig, sums

POOL, LONGEST = 10, 130  # five blocks at most, so that three sequences are too many
ROWS = 64  # of a step, where window layers have blocks of their own
WINDOW, WINDOW_BLOCKS = 40, 9  # of scripted layers
TOKEN = st.integers(5, 7)  # few, so that prompts agree by chance inside a block
BEGINNINGS = [[5 + i * k % 11 for i in range(100)] for k in (1, 2)]
PROMPTS = st.builds(
    lambda begin, length, own: [*begin[:length], *own],
    st.sampled_from(BEGINNINGS),
    st.sampled_from([0, 5, 31, 32, 33, 64, 70, 96]),
    st.lists(TOKEN, min_size=1, max_size=12),
)


@dataclass(frozen=True)
class Setup:
    """What a machine runs."""

    make: Callable[[Path | None], Stepper[Any]]
    alone: Callable[[list[int]], np.ndarray]  # computes tokens from nothing
    on_disk: bool
    most: int  # tokens of a sequence in a step
    full: bool  # all positions are kept, so a hit is as long as tokens agree
    rows: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)  # what `alone` gave, by tokens


class Pool(RuleBasedStateMachine):
    """Sequences come, are computed piece by piece, fork, speculate, yield and end."""

    setup: Setup

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory() if self.setup.on_disk else None
        self.gone: list[Stepper[Any]] = []
        self.start()

    def start(self) -> None:
        self.rig = self.setup.make(Path(self.folder.name) if self.folder else None)
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
        """Compute some rows of some sequences; one that finds no room preempts the youngest others."""
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
    @rule(data=st.data(), right=st.lists(TOKEN, max_size=8), wrong=st.integers(0, 40), bonus=TOKEN)
    def speculate(self, data: st.DataObject, right: list[int], wrong: int, bonus: int) -> None:
        """Verify draft tokens of which the first are right, and the others leave garbage in the blocks."""
        seq = data.draw(st.sampled_from([s for s in self.live if self.decodes(s)]))
        if not self.place(seq, [seq]):
            return
        blocks, first = self.rig.blocks, seq.num_computed_tokens
        if first < len(seq.tokens) - 1:  # it began again
            return
        room = blocks.stretch(seq, len(seq.tokens) + len(right) + wrong) - len(seq.tokens)
        draft = (*right, *[9] * wrong)[:room]
        held = min(len(right), room)
        blocks.prepare(seq, first, 1, len(draft))
        self.rig.runner.run([ScheduledChunk(seq, first, 1, draft)], choose=False)
        seq.tokens += [*right[:held], bonus]
        blocks.publish(seq, first + 1 + held, len(draft))
        assert len(seq.block_table) <= blocks_for(len(seq.tokens))
        assert first < seq.num_computed_tokens <= first + 1 + held
        self.seen[seq.request.tenant].append(seq.tokens[: seq.num_computed_tokens])

    @precondition(lambda self: self.live)
    @rule(data=st.data(), rows=st.sampled_from([1, 20, 64]))
    def interrupt(self, data: st.DataObject, rows: int) -> None:
        """Compute rows that are not accounted for."""
        seq = data.draw(st.sampled_from(self.live))
        if self.place(seq, [seq]):
            chunk = self.cut(seq, rows)
            self.rig.blocks.prepare(seq, chunk.first, chunk.count)
            self.rig.runner.run([chunk], choose=False)
            self.rig.blocks.publish(seq, chunk.first)
            assert seq.num_computed_tokens <= chunk.first

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
            if not child.block_table:
                self.rig.blocks.release(child)
            self.live.append(child)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), blocks=st.integers(0, 3))
    def wait_for(self, data: st.DataObject, blocks: int) -> None:
        """Let another sequence wait for so much of one."""
        data.draw(st.sampled_from(self.live)).awaited_until = blocks * SIZE

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.rig.blocks.release(data.draw(st.sampled_from(self.live)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.live))
        self.live.remove(seq)
        self.rig.blocks.retire(seq)

    @precondition(lambda self: self.setup.on_disk)
    @rule()
    def restart(self) -> None:
        """Lose all but the disk; what is still being written to it arrives at any time, as from another engine."""
        self.gone.append(self.rig)
        self.start()

    # --- what must hold --------------------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        check_books(self.rig.blocks, self.live)
        if isinstance(self.rig, ScriptedRig):
            self.rig.runner.forget()

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
            if other.request.tenant == tenant and self.setup.full:
                same = common_prefix(seq.tokens[:-1], other.tokens[: other.num_computed_tokens])
                assert match >= same // SIZE * SIZE

    # --- means -----------------------------------------------------------------------------------------

    def place(self, seq: Sequence, keep: list[Sequence]) -> bool:
        blocks = self.rig.blocks
        while not blocks.reserve(seq):
            if not self.preempt_other(keep):
                return False
        if seq.num_computed_tokens == len(seq.tokens):  # its last token's logits are wanted again
            blocks.publish(seq, len(seq.tokens) - 1)
        if not seq.block_table:
            expected = blocks.match(seq)
            while not blocks.adopt(seq, hurry=True):
                pass
            assert seq.num_computed_tokens >= expected // SIZE * SIZE or not (
                self.setup.full or blocks.available
            )
            assert seq.num_computed_tokens <= expected or self.setup.on_disk
            self.seen[seq.request.tenant].append(seq.tokens[: seq.num_computed_tokens])
        while not blocks.grow(seq, len(seq.tokens)):
            if not self.preempt_other(keep):
                return False
        return True

    def preempt_other(self, keep: list[Sequence]) -> bool:
        victims = [s for s in self.live if s.block_table and s not in keep]
        if victims:
            self.rig.blocks.release(victims[-1])
        return bool(victims)

    def cut(self, seq: Sequence, rows: int) -> ScheduledChunk:
        first = min(seq.num_computed_tokens, len(seq.tokens) - 1)
        return ScheduledChunk(seq, first, min(rows, len(seq.tokens) - first, self.setup.most))

    def expected(self, tokens: list[int]) -> np.ndarray:
        key = tuple(tokens)
        if key not in self.setup.rows:
            self.setup.rows[key] = self.setup.alone(tokens)
        return self.setup.rows[key]

    @staticmethod
    def finished(seq: Sequence) -> bool:
        return seq.num_computed_tokens == len(seq.tokens) < LONGEST

    @staticmethod
    def decodes(seq: Sequence) -> bool:
        return seq.num_computed_tokens == len(seq.tokens) - 1 and len(seq.tokens) < LONGEST - 10


@pytest.mark.heavy
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
    most = ROWS if window_blocks else LONGEST
    make = lambda folder: Rig(loaded, POOL, folder, window_blocks, ROWS)  # noqa: E731
    run(Setup(make, Rig(loaded, 8).alone, on_disk, most, full=not window_blocks), 30)


@pytest.mark.parametrize(("states", "on_disk"), [(3, False), (6, False), (6, True)])
def test_every_value_of_full_window_and_recurrent_layers_is_a_recomputes(
    states: int, on_disk: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tier_module, "KEPT_BLOCKS", 1)
    monkeypatch.setattr(blocks_module, "LOAD_S", 0.0)
    make = lambda folder: ScriptedRig(POOL, WINDOW, WINDOW_BLOCKS, states, ROWS, folder)  # noqa: E731
    run(Setup(make, lambda tokens: sums(tokens)[-1], on_disk, ROWS, full=False), 60)


def run(setup: Setup, examples: int) -> None:
    """Run a machine."""
    run_state_machine_as_test(
        type("Machine", (Pool,), {"setup": setup}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
