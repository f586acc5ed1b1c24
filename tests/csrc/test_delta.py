"""The gated delta rule's kernels of every table against the oracle; no way of cutting a prompt changes a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freehold import _native as native

from . import F32, ULP, normal, same_bits

kernels = native.testing

every_isa = pytest.mark.parametrize("isa", native.isas())
decays = pytest.mark.parametrize("by_key", [False, True], ids=["one decay", "a decay for each key"])
SIZES = [(1, 128, 128), (40, 128, 128), (17, 16, 16), (23, 12, 24), (9, 2, 48), (30, 34, 80)]


def inputs(tokens: int, keys: int, columns: int, by_key: bool, seed: int = 0) -> tuple[F32, ...]:
    """Return q, k, v, decay and beta of one head; betas up to 2, as OLMo Hybrid has them."""
    draw = np.random.default_rng(seed)
    decay = np.exp(-draw.exponential(0.3, (tokens, keys if by_key else 1)))
    beta = draw.uniform(0, 2, tokens)
    q, k, v = (normal(seed + i, tokens, width) * 3 for i, width in enumerate((keys, keys, columns)))
    return q, k, v, decay.astype(np.float32), beta.astype(np.float32)


def blocks(seed: int, keys: int, columns: int) -> F32:
    return normal(seed, -(-columns // 16), keys, 16)


def rows(given: tuple[F32, ...], which: slice) -> Any:
    return [np.ascontiguousarray(a[which]) for a in given]


@every_isa
@decays
@pytest.mark.parametrize(("tokens", "keys", "columns"), SIZES)
def test_scan_agrees_with_the_formula(isa, by_key, tokens, keys, columns):
    given, state = inputs(tokens, keys, columns, by_key), blocks(9, keys, columns)
    out, after = kernels.delta_scan(isa, *given, state)
    want, want_after = kernels.delta_scan("reference", *given, state)
    reach = max(np.abs(state).max(), np.abs(given[2]).max())
    used = np.ones(16 * len(state), bool)
    used[columns:] = False
    own, oracle = (a.swapaxes(1, 2).reshape(len(used), keys)[used] for a in (after, want_after))
    assert np.abs(own - oracle).max() <= 64 * ULP * reach
    assert np.abs(out - want).max() <= 64 * ULP * reach


@every_isa
@decays
def test_a_scan_without_a_state_begins_with_zeros(isa, by_key):
    given = inputs(5, 12, 40, by_key)
    zeros = np.zeros((3, 12, 16), np.float32)
    for one, other in zip(
        kernels.delta_scan(isa, *given, None), kernels.delta_scan(isa, *given, zeros), strict=True
    ):
        assert same_bits(one, other)


@every_isa
@decays
@pytest.mark.parametrize("in_place", [False, True], ids=["to another slot", "in place"])
@pytest.mark.parametrize("cuts", [(1, 16, 17, 40), (15, 31, 47), tuple(range(1, 50))])
def test_pieces_of_a_prompt_give_the_bits_of_the_whole(isa, by_key, cuts, in_place):
    given = inputs(50, 32, 48, by_key)
    whole, after = kernels.delta_scan(isa, *given, None)
    parts, state = [], None
    for begin, end in zip((0, *cuts), (*cuts, 50), strict=True):
        out, state = kernels.delta_scan(isa, *rows(given, slice(begin, end)), state, in_place)
        parts.append(out)
    assert same_bits(np.concatenate(parts), whole) and same_bits(state, after)


@every_isa
@decays
@pytest.mark.parametrize("columns", [16, 32, 48, 72])
def test_blocks_of_columns_computed_apart_give_the_bits_of_all(isa, by_key, columns):
    """Threads share blocks of columns; two of them in one call share broadcasts, and no sum."""
    given, state = inputs(21, 20, columns, by_key), blocks(3, 20, columns)
    whole = kernels.delta_scan(isa, *given, state)
    apart = kernels.delta_scan(isa, *given, state, False, True)
    assert all(same_bits(one, other) for one, other in zip(whole, apart, strict=True))


@every_isa
def test_a_head_of_zeros_keeps_its_state_and_no_number_is_lost(isa):
    """rsqrt(sum + eps): keys of length 0 are 0, where a division by their length would not be a number."""
    q, k, v, decay, beta = inputs(6, 16, 16, False)
    out, state = kernels.delta_scan(isa, q * 0, k * 0, v, decay, beta, blocks(1, 16, 16))
    assert not out.any()
    np.testing.assert_allclose(state, blocks(1, 16, 16) * decay.prod(), rtol=1e-6)


@every_isa
def test_unit_norm_adds_its_epsilon_under_the_root(isa):
    """Keys of length 1e-3: rsqrt(sum + 1e-6) makes them 0.707 long, max(length, 1e-6) would make them 1."""
    unit = np.eye(1, 16, dtype=np.float32)
    one = np.ones((1, 1), np.float32)
    v = np.ones((1, 16), np.float32)
    out, state = kernels.delta_scan(isa, unit * 1e-3, unit * 1e-3, v, one, one[0], None)
    np.testing.assert_allclose(state[0, 0], np.full(16, 0.5**0.5), rtol=1e-6)
    np.testing.assert_allclose(out[0], np.full(16, 0.5 / 4), rtol=1e-6)


@every_isa
def test_decays_agree_with_the_reference_where_steps_are_tiny_and_where_they_are_large(isa):
    x = np.concatenate([np.linspace(-80, 80, 321), normal(1, 30) * 9 - 9]).astype(np.float32)
    bias, a = normal(2, len(x)), -np.exp(normal(3, len(x)))
    got, want = (kernels.delta_decays(name, x, a, bias) for name in (isa, "reference"))
    reach = np.log1p(np.exp(np.minimum(x + bias, 80).astype(np.float64))) * np.abs(a)
    assert np.all(np.abs(got - want) <= (16 + 8 * reach) * ULP * want + 1e-44)


@every_isa
def test_bounded_decays_agree_with_the_reference_and_keep_within_their_bound(isa):
    x = np.concatenate([np.linspace(-80, 80, 321), normal(1, 30) * 9 - 9]).astype(np.float32)
    bias, a = normal(2, len(x)), np.exp(normal(3, len(x)))
    got, want = (kernels.delta_bounded(name, x, a, bias, -5.0) for name in (isa, "reference"))
    assert np.all(np.abs(got - want) <= (64 + 8 * np.abs(a * (x + bias))) * ULP * want)
    assert got.min() >= np.exp(-5.0) * (1 - 8 * ULP) and got.max() <= 1
    assert np.isnan(kernels.delta_bounded(isa, *(np.array([np.nan], np.float32),) * 3, -5.0)).all()


@every_isa
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_betas_are_sigmoids_times_their_scale(isa, scale):
    x = np.linspace(-100, 100, 403, dtype=np.float32)
    got, want = (kernels.delta_betas(name, x, scale) for name in (isa, "reference"))
    assert np.all(np.abs(got - want) <= (8 + 2 * np.abs(x)) * ULP * want + 1e-38)


@every_isa
@pytest.mark.parametrize("which", range(5), ids=["q", "k", "v", "decay", "beta"])
def test_what_is_not_a_number_stays_one(isa, which):
    given = inputs(3, 16, 16, False)
    given[which].reshape(3, -1)[1, 0] = np.nan
    out, state = kernels.delta_scan(isa, *given, None)
    assert not np.isnan(out[0]).any() and np.isnan(out[1]).any()
    assert np.isnan(state).any() == (which != 0)
