"""The op of Mamba-2's recurrence: states by slots and pieces, threads, several sequences, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.run.models.oracle.arithmetic import RecurrentVerbs

from . import F32, normal, same_bits

HEADS, WIDTH, GROUPS, STATES = 4, 80, 2, 24  # a head of 80 channels is one block of 64 and one of 16
INNER = HEADS * WIDTH
MIXED = INNER + 2 * GROUPS * STATES
TOKENS = 64
A, D, BIAS = -np.exp(normal(1, HEADS)), normal(2, HEADS), normal(3, HEADS) - 1
TABLE, STEPS = normal(4, TOKENS, MIXED), normal(5, HEADS, MIXED) * np.float32(0.05)


def packed(values: F32, threads: native.Threads) -> native.Matrix:
    rows, columns = values.shape
    return native.Matrix.pack(values.view(np.uint8).reshape(-1), "F32", rows, columns, threads)


class Model:
    """A plan of one scan, whose tokens are rows of a table, and its cache."""

    def __init__(self, threads: int = 1, slots: int = 4) -> None:
        pool = native.Threads(threads)
        self.cache = native.KvCache([(0, 0, 0)], 4, states=[(0, INNER * STATES)], slots=slots)
        self.plan = native.Plan(pool, self.cache, TOKENS)
        x = self.plan.embed(packed(TABLE, pool))
        (dt,) = self.plan.linear(x, [packed(STEPS, pool)], [None])
        self.plan.hidden(self.plan.ssm_scan(0, x, dt, A, D, BIAS, GROUPS, STATES))
        self.plan.finish()

    def run(self, rows: list[tuple[int, int, int]], pieces: list[tuple[int, ...]]) -> F32:
        """Compute tokens [first, end) of sequences, (sequence, first, end) each; return their y."""
        positions = np.concatenate([np.arange(a, b, dtype=np.int32) for _, a, b in rows])
        seqs = np.concatenate([np.full(b - a, s, np.int32) for s, a, b in rows])
        out = np.zeros((len(seqs), INNER), np.float32)
        tables = np.arange(4, dtype=np.int32)[None].repeat(1 + int(seqs.max()), 0)
        self.plan.run(
            (positions + 7 * seqs) % TOKENS,
            positions,
            seqs,
            tables,
            np.zeros(0, np.int32),
            hidden_rows=np.arange(len(seqs), dtype=np.int32),
            hidden=out,
            pieces=np.array(pieces, np.int32),
        )
        return out


def whole() -> F32:
    return Model().run([(0, 0, 40)], [(0, 0, 40, -1, 0)])


def test_the_plan_computes_what_the_oracle_says():
    ops = RecurrentVerbs()
    ops._states = {}
    x = TABLE[np.arange(40)]
    want = ops.ssm_scan(0, x, np.asarray(x @ STEPS.T, np.float32), A, D, BIAS, GROUPS, STATES)
    assert np.abs(whole() - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_pieces_give_the_bits_of_one_step(threads: int):
    model, want = Model(threads), whole()
    got = [
        model.run([(0, 0, 17)], [(0, 0, 5, -1, 0), (0, 5, 17, 0, 0)]),
        model.run([(0, 17, 18)], [(0, 17, 18, 0, 1)]),
        model.run([(0, 18, 40)], [(0, 18, 19, 1, 2), (0, 19, 33, 2, 2), (0, 33, 40, 2, 0)]),
    ]
    assert same_bits(np.concatenate(got), want)


def test_a_sequence_beside_others_keeps_its_bits():
    model = Model(2)
    model.run([(0, 0, 9), (1, 0, 30)], [(0, 0, 9, -1, 0), (1, 0, 30, -1, 1)])
    both = model.run([(0, 9, 40), (1, 30, 31)], [(0, 9, 40, 0, 0), (1, 30, 31, 1, 1)])
    assert same_bits(both[:31], whole()[9:])


def test_a_state_that_is_read_and_not_written_stays():
    """A snapshot: what reads it goes on in another slot."""
    model = Model()
    model.run([(0, 0, 12)], [(0, 0, 12, -1, 0)])
    before = model.cache.read_state(0)
    first = model.run([(0, 12, 20)], [(0, 12, 20, 0, 1)])
    assert np.array_equal(model.cache.read_state(0), before)
    assert same_bits(model.run([(0, 12, 20)], [(0, 12, 20, 0, 2)]), first)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"groups": 3}, "3 groups do not divide 4 heads"),
        ({"states": 513}, "states must be 1 to 512, got 513"),
        ({"states": 25}, "channels are not heads of a multiple of 16"),
        ({"d": D[:3]}, "a, d and bias need a value for each head"),
        ({"layer": 1}, "no layer 1 in the cache"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object], named: str):
    pool = native.Threads(1)
    plan = native.Plan(pool, native.KvCache([(0, 0, 0)], 4, states=[(0, INNER * STATES)], slots=1), 8)
    x = plan.embed(packed(TABLE, pool))
    (dt,) = plan.linear(x, [packed(STEPS, pool)], [None])
    given = {"layer": 0, "x": x, "dt": dt, "a": A, "d": D, "bias": BIAS, "groups": GROUPS, "states": STATES}
    with pytest.raises(UsageError, match=named):
        plan.ssm_scan(**given | change)  # type: ignore[arg-type]


def test_a_cache_that_keeps_another_state_is_refused():
    pool = native.Threads(1)
    plan = native.Plan(pool, native.KvCache([(0, 0, 0)], 4, states=[(0, 64)], slots=1), 8)
    x = plan.embed(packed(TABLE, pool))
    (dt,) = plan.linear(x, [packed(STEPS, pool)], [None])
    with pytest.raises(
        UsageError, match=f"a state of 64 in the cache; the op keeps any and {INNER * STATES}"
    ):
        plan.ssm_scan(0, x, dt, A, D, BIAS, GROUPS, STATES)
