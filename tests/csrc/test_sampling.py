"""Sampling: each filter's set, noise as a function of seed, position and id and the distribution."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import _native as native
from freehold.base.errors import UsageError

from . import F32, normal, same_bits

gumbel = native.testing.gumbel


def draw(
    logits: F32,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    seed: int = 0,
    position: int = 0,
) -> int:
    return native.sample(logits, temperature, top_k, top_p, min_p, typical_p, seed, position)


def support(logits: F32, how: dict[str, Any], draws: int = 400) -> set[int]:
    """Collect the tokens drawn at many positions: the surviving set, if it is small and nearly flat."""
    return {draw(logits, position=i, **how) for i in range(draws)}


def kept(logits: F32, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0) -> set[int]:
    """Filter by the definitions, by sorting: the oracle."""
    x = logits.astype(np.float64) / temperature
    ids = np.lexsort((np.arange(x.size), -x))
    if top_k > 0:
        ids = ids[:top_k]
    if typical_p < 1:
        p = softmax(x[ids])
        surprise = -np.log(np.maximum(p, 1e-300))
        order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
        ids = ids[np.sort(prefix(p, order, typical_p))]
    if top_p < 1:
        p = softmax(x[ids])
        ids = ids[prefix(p, np.arange(ids.size), top_p)]
    if min_p > 0:
        p = softmax(x[ids])
        ids = ids[p >= min_p * p.max()]
    return set(ids.tolist())


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def prefix(p: np.ndarray, order: np.ndarray, mass: float) -> np.ndarray:
    """Return the shortest prefix of `order` whose probabilities reach `mass`."""
    return order[: int(np.searchsorted(np.cumsum(p[order]), mass)) + 1]


def winner(logits: F32, ids: set[int], temperature: float, seed: int, position: int) -> int:
    """Return the Gumbel-max winner among ids, by the definition."""
    return max(sorted(ids), key=lambda i: float(logits[i]) / temperature + gumbel(seed, position, i))


FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 900},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"typical_p": 0.5},
    {"top_k": 40, "top_p": 0.95},
    {"top_k": 200, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.02},
    {"top_p": 0.7, "min_p": 0.3},
    {"typical_p": 0.95, "top_p": 0.5},
]


@pytest.mark.parametrize("how", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("n", [5, 64, 1000, 5000])
def test_choice_is_the_gumbel_winner_of_the_filtered_set(how, temperature, n):
    """The fast paths (bounds, bins, skipped logarithms) against sorting and taking every logarithm."""
    logits = normal(n, n) * 3
    ids = kept(logits, temperature, **how)
    for position in range(12):
        want = winner(logits, ids, temperature, 7, position)
        assert draw(logits, temperature, seed=7, position=position, **how) == want


def test_plain_sampling_equals_the_definition_on_a_peaked_and_on_a_flat_vocabulary():
    flat = np.zeros(3000, np.float32)
    peaked = flat.copy()
    peaked[1234] = 25
    for logits in (flat, peaked, np.sort(normal(0, 3000)) * 4):
        for position in range(20):
            assert draw(logits, seed=3, position=position) == winner(
                logits, set(range(3000)), 1.0, 3, position
            )


def test_frequencies_match_the_softmax():
    logits = np.array([2.0, 1.0, 0.0, -1.0, 1.5], np.float32)
    draws = 20_000
    seen = Counter(draw(logits, temperature=0.8, position=i, seed=11) for i in range(draws))
    p = softmax(logits.astype(np.float64) / 0.8)
    chi2 = sum((seen[i] - draws * p[i]) ** 2 / (draws * p[i]) for i in range(5))
    assert chi2 < 23.5  # 4 degrees of freedom: passed by all but one seed in ten thousand


def test_frequencies_match_over_seeds_too():
    logits = np.zeros(4, np.float32)
    seen = Counter(draw(logits, position=5, seed=s) for s in range(8000))
    assert all(abs(seen[i] - 2000) < 200 for i in range(4))


def test_noise_is_gumbel_and_independent_of_its_neighbours():
    g = np.array([gumbel(1, 0, i) for i in range(20_000)])
    assert abs(g.mean() - np.euler_gamma) < 0.04
    assert abs(g.var() - math.pi**2 / 6) < 0.1
    shifted = np.array([gumbel(1, 1, i) for i in range(20_000)])
    assert abs(np.corrcoef(g, shifted)[0, 1]) < 0.03
    assert abs(np.corrcoef(g[1:], g[:-1])[0, 1]) < 0.03


def test_sample_is_a_function_of_its_arguments():
    logits = normal(5, 2000)
    first = [draw(logits, 1.0, 50, 0.9, seed=2**63 + 5, position=i) for i in range(50)]
    assert first == [draw(logits.copy(), 1.0, 50, 0.9, seed=2**63 + 5, position=i) for i in range(50)]
    assert first != [draw(logits, 1.0, 50, 0.9, seed=1, position=i) for i in range(50)]


def test_adding_a_constant_changes_no_choice():
    logits = np.round(normal(6, 500) * 64) / np.float32(64)  # so that adding 8 is exact
    for how in FILTERS:
        for position in range(10):
            assert draw(logits, position=position, **how) == draw(
                logits + np.float32(8), position=position, **how
            )


def test_temperature_zero_is_greedy_and_takes_the_lowest_of_equals():
    logits = np.array([0, 3, 1, 3], np.float32)
    assert {draw(logits, temperature=0.0, position=i) for i in range(20)} == {1}
    assert {draw(logits, temperature=1e-42, position=i, top_p=0.5) for i in range(20)} <= {1, 3}


def test_top_k_breaks_ties_by_lower_id():
    logits = np.zeros(300, np.float32)
    assert support(logits, {"top_k": 3}) == {0, 1, 2}
    logits[200] = 1
    assert support(logits, {"top_k": 3}) == {0, 1, 200}


def test_top_p_keeps_at_least_one():
    logits = np.array([0, 1, 5, 2], np.float32)
    assert support(logits, {"top_p": 0.0}, draws=50) == {2}
    assert support(logits, {"top_p": 1e-6}, draws=50) == {2}


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.9}])
def test_any_non_finite_logit_gives_minus_one(poison, how):
    logits = normal(9, 333)
    logits[332] = poison
    assert draw(logits, **how) == -1


def test_an_empty_row_gives_minus_one():
    assert draw(np.zeros(0, np.float32)) == -1


def test_banned_tokens_with_very_low_logits_are_never_drawn():
    logits = np.full(5000, -3e38, np.float32)
    logits[[17, 4000]] = [1.0, 1.5]
    for how in ({}, {"top_p": 0.999}, {"top_k": 10}, {"min_p": 0.001}, {"typical_p": 0.99}):
        assert support(logits, how, draws=60) == {17, 4000}, how


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**31),
    n=st.integers(1, 400),
    temperature=st.floats(0.015625, 50, width=32),
    top_k=st.integers(0, 500),
    top_p=st.floats(0, 1, width=32),
    min_p=st.floats(0, 1, width=32),
    typical_p=st.floats(0.0078125, 1, width=32),
)
def test_every_combination_draws_a_token(seed, position, n, temperature, top_k, top_p, min_p, typical_p):
    logits = normal(n, n) * 5
    assert 0 <= draw(logits, temperature, top_k, top_p, min_p, typical_p, seed, position) < n


def test_penalties_follow_their_definition():
    logits = np.array([2, -2, 3, 4, 0], np.float32)
    ids, counts = np.array([0, 1, 3], np.int32), np.array([1, 2, 0], np.int32)
    native.penalize(logits, ids, counts, 2.0, 0.5, 0.25)
    assert logits.tolist() == [2 / 2 - 0.75, -2 * 2 - 1.0, 3, 4, 0]


def test_neutral_penalties_change_no_bit():
    logits = normal(1, 100)
    before = logits.copy()
    native.penalize(logits, np.arange(100, dtype=np.int32), np.ones(100, np.int32), 1.0, 0.0, 0.0)
    assert same_bits(logits, before)


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
def test_penalty_for_an_unknown_id_is_refused_and_changes_nothing(bad):
    logits = np.ones(5, np.float32)
    with pytest.raises(UsageError, match=f"{bad} is outside a vocabulary of 5"):
        native.penalize(logits, np.array([0, bad], np.int32), np.array([1, 1], np.int32), 2.0, 0.0, 0.0)
    assert (logits == 1).all()


def test_log_sum_exp_matches_numpy():
    x = normal(2, 4000) * 5
    assert native.log_sum_exp(x) == pytest.approx(float(np.log(np.exp(x.astype(np.float64)).sum())), abs=4e-6)
