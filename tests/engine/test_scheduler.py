"""The scheduler shares a step's rows out by age, and its size by how long steps take."""

from __future__ import annotations

import pytest

from freehold.engine import scheduler as scheduler_module
from freehold.engine.blocks import BlockManager
from freehold.engine.scheduler import MIN_ROWS, Scheduler, Work
from freehold.engine.sequence import Request, Sequence, TokenOut
from freehold.types import SamplingParams


def sequence(count: int, **fields: object) -> Sequence:
    request = Request(tuple(range(count)), SamplingParams(), 0, 10, **fields)  # type: ignore[arg-type]
    return Sequence(request, list(range(count)))


def scheduler(blocks: int = 100, rows: int = 64, now: float = 0.0) -> Scheduler:
    return Scheduler(BlockManager(blocks), rows, lambda: now)


def computed(batch: list[Work]) -> list[tuple[int, int]]:
    for work in batch:
        work.seq.computed = work.first + work.count
    return [(work.first, work.count) for work in batch]


def test_long_prompt_is_cut_into_steps_and_wants_logits_at_its_end_only():
    s = scheduler(rows=40)
    s.add(sequence(100))
    wanted = []
    for expected in ((0, 40), (40, 40), (80, 20)):
        batch = s.schedule()
        wanted.append(list(batch[0].logit_rows))
        assert computed(batch) == [expected]
    assert wanted == [[], [], [19]]


def test_single_tokens_go_before_prompt_chunks_of_older_sequences():
    s = scheduler()
    old, young = sequence(100), sequence(10)
    s.add(old)
    s.add(young)
    assert computed(s.schedule()) == [(0, 64)]
    assert computed(s.schedule()) == [(64, 36), (0, 10)]
    old.tokens += range(100)
    young.tokens.append(1)
    assert [(w.seq is young, w.count) for w in s.schedule()] == [(True, 1), (False, 63)]


def test_token_nobody_took_holds_its_sequence_back():
    s = scheduler()
    seq = sequence(5)
    s.add(seq)
    computed(s.schedule())
    seq.tokens.append(1)
    seq.pending.append(TokenOut(1))
    assert s.schedule() == []
    seq.pending.popleft()
    assert computed(s.schedule()) == [(5, 1)]


def test_older_sequence_takes_blocks_from_the_youngest_which_starts_again():
    s = scheduler(blocks=3)
    old, young = sequence(60), sequence(30)
    s.add(old)
    s.add(young)
    computed(s.schedule())
    computed(s.schedule())
    assert (len(old.table), len(young.table)) == (2, 1)
    young.pending.append(TokenOut(1))
    old.tokens += range(10)
    assert [w.seq for w in s.schedule()] == [old]
    assert (young.table, young.computed) == ([], 0)


def test_stalled_reader_is_passed_over_only_after_a_while(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    s = Scheduler(BlockManager(2), 64, lambda: clock[0])
    old, young = sequence(60), sequence(40)
    s.add(old)
    computed(s.schedule())
    old.pending.append(TokenOut(1))
    s.add(young)
    assert s.schedule() == []
    clock[0] = scheduler_module.STALL_S + 0.1
    assert [w.seq for w in s.schedule()] == [young] and old.table == []


def test_interrupted_step_is_computed_again():
    s = scheduler()
    seq = sequence(5)
    s.add(seq)
    computed(s.schedule())
    assert computed(s.schedule()) == [(4, 1)]


def test_step_that_took_long_makes_the_next_ones_smaller_and_a_quick_one_larger():
    s = scheduler(rows=512)
    s.pace(s.budget, 10.0)
    assert s.budget == MIN_ROWS
    s.pace(s.budget, 0.16)
    assert s.budget == 400
    s.pace(1, 10.0)
    assert s.budget == 400
    s.pace(400, 0.001)
    assert s.budget == 512
