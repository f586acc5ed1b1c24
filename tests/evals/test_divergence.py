"""Divergence counted row by row equals the sums over whole arrays, and its interval is honest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from freehold.adapt.evals.divergence import LEAST_BLOCKS, DivergenceCounter
from freehold.base.errors import NonFiniteLogits

RNG = np.random.default_rng(5)
F32 = NDArray[np.float32]


def rows(count: int = 24, vocab: int = 50) -> tuple[F32, F32, NDArray[np.int64]]:
    one = (3 * RNG.standard_normal((count, vocab))).astype(np.float32)
    other = one + (0.3 * RNG.standard_normal((count, vocab))).astype(np.float32)
    return one, other, RNG.integers(0, vocab, count)


def log_softmax(x: F32) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_counts_are_those_of_whole_arrays():
    one, other, targets = rows()
    counter = DivergenceCounter()
    for i in range(0, 24, 8):
        counter.add(one[i : i + 8], other[i : i + 8], targets[i : i + 8])
        counter.close_block()
    found = counter.result()
    p, q = log_softmax(one), log_softmax(other)
    each = (np.exp(p) * (p - q)).sum(axis=1)
    at, beside = p[np.arange(24), targets], q[np.arange(24), targets]
    assert found.mean == pytest.approx(each.mean(), abs=1e-6)
    assert found.max == pytest.approx(each.max(), abs=1e-6)
    assert found.p90 == pytest.approx(np.percentile(each, 90), abs=1e-6)
    assert found.same_top == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert found.rms_delta_p == pytest.approx(
        math.sqrt(((np.exp(beside) - np.exp(at)) ** 2).mean()), abs=1e-6
    )
    assert found.perplexity_ratio == pytest.approx(math.exp((at - beside).mean()), rel=1e-5)
    assert (found.tokens, found.blocks) == (24, 3) and found.low <= found.mean <= found.high


def test_equal_rows_differ_by_exactly_nothing():
    one, _, targets = rows()
    counter = DivergenceCounter()
    counter.add(one, one.copy(), targets)
    counter.close_block()
    found = counter.result()
    assert (found.mean, found.max, found.same_top, found.perplexity_ratio) == (0.0, 0.0, 1.0, 1.0)


def test_a_constant_added_to_all_logits_changes_nothing():
    one, other, targets = rows()
    plain, moved = DivergenceCounter(), DivergenceCounter()
    plain.add(one, other, targets)
    moved.add(one + np.float32(900), other - np.float32(900), targets)
    assert moved.result().mean == pytest.approx(plain.result().mean, rel=1e-3)


def test_the_interval_of_ninety_five_per_cent_holds_the_mean_nineteen_times_in_twenty():
    held = 0
    for _ in range(300):
        counter = DivergenceCounter()
        counter._divergences = list(RNG.exponential(1.0, 12 * 4))  # blocks of four independent tokens
        counter._ends = list(range(4, 49, 4))
        held += abs(np.mean(counter._divergences) - 1.0) <= counter.half_width()
    assert 0.88 <= held / 300 <= 0.98


def test_a_few_blocks_never_stop_a_measurement():
    one, other, targets = rows(LEAST_BLOCKS)
    counter = DivergenceCounter()
    for i in range(LEAST_BLOCKS - 1):
        counter.add(one[i : i + 1], other[i : i + 1], targets[i : i + 1])
        counter.close_block()
        assert not counter.narrow(100.0)
    counter.add(one[-1:], other[-1:], targets[-1:])
    counter.close_block()
    assert counter.narrow(100.0) and not counter.narrow(1e-9)


def test_damaged_weights_are_named_and_not_averaged_away():
    one, other, targets = rows()
    other[3, 7] = np.nan
    with pytest.raises(NonFiniteLogits, match="position 4"):
        DivergenceCounter().add(one, other, targets)
