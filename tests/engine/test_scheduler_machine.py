"""Whatever comes, goes, stalls or is cancelled: every admitted sequence ends, and the pool is whole again."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from freehold.base.types import Priority
from freehold.run.engine.cache.blocks import blocks_for
from freehold.run.engine.sequence import Sequence, TokenOut
from tests.engine.rig import check_books
from tests.engine.world import World

SHARED = list(range(1_000_000, 1_000_200))


class SchedulerMachine(RuleBasedStateMachine):
    """A world whose requests are drawn."""

    seqs = Bundle("seqs")

    @initialize(
        blocks=st.sampled_from([16, 30, 100]),
        max_num_batched_tokens=st.sampled_from([4, 48, 512]),
        window=st.sampled_from([0, 40, 100]),
        states=st.sampled_from([0, 2, 7]),
    )
    def begin(self, blocks: int, max_num_batched_tokens: int, window: int, states: int) -> None:
        self.world = World(
            blocks=blocks, max_num_batched_tokens=max_num_batched_tokens, window=window, states=states
        )
        self.stalled: list[Sequence] = []

    @rule(
        target=seqs,
        shared=st.sampled_from([0, 40, 200]),
        own=st.sampled_from([1, 31, 33, 150]),
        answer=st.sampled_from([1, 5, 90]),
        priority=st.sampled_from(["interactive", "batch"]),
        tenant=st.sampled_from(["", "a"]),
        grammar_s=st.sampled_from([0.0, 0.003, 0.3]),
    )
    def ask(
        self, shared: int, own: int, answer: int, priority: Priority, tenant: str, grammar_s: float
    ) -> Sequence:
        prompt = [*SHARED[:shared], *(own * 1000 + i for i in range(max(own, 1)))]
        return self.world.add(prompt, answer, priority, tenant, grammar_s=grammar_s)

    @rule(target=seqs, parent=seqs)
    def answer_again(self, parent: Sequence) -> Sequence:
        request = parent.request
        return self.world.add(
            list(request.prompt), request.max_tokens, request.priority, request.tenant, parent
        )

    @rule(seq=consumes(seqs))
    def cancel(self, seq: Sequence) -> None:
        if not seq.done:
            self.world.cancel(seq)

    @rule(seq=seqs)
    def stall(self, seq: Sequence) -> None:
        if not seq.done and seq.block_table:
            seq.pending.append(TokenOut(1))
            seq.pending_since = self.world.now
            self.stalled.append(seq)

    @rule()
    def go_on_taking(self) -> None:
        for seq in self.stalled:
            seq.pending.clear()
        self.stalled.clear()

    @rule(drafts=st.integers(0, 9), held=st.integers(0, 9))
    def speculate(self, drafts: int, held: int) -> None:
        self.world.drafts, self.world.held = drafts, held

    @rule()
    def interrupt(self) -> None:
        self.world.fail()

    @rule(steps=st.integers(1, 40))
    def pass_time(self, steps: int) -> None:
        for _ in range(steps):
            self.world.step()

    @invariant()
    def books_balance(self) -> None:
        live = self.world.scheduler.live
        held = {block for seq in live for block in seq.block_table}
        assert len(held) == self.world.blocks.live
        assert all(len(seq.block_table) <= blocks_for(len(seq.tokens)) for seq in live)
        check_books(self.world.blocks, list(live))
        assert all(seq.done and not seq.block_table for seq in self.world.logs if seq not in live)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.go_on_taking()
            self.world.finish()
            assert self.world.blocks.live == 0 and self.world.scheduler.live.running == 0


SchedulerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase
