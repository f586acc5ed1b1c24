"""An encoder's kernels of every table against the oracle: wide codes, layer norm, GELU, attention both ways."""

from __future__ import annotations

import math

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile

from . import F32, ULP, normal, same_bits

kernels = native.testing
POOL = native.Threads(2)
GREATEST = 4095

every_isa = pytest.mark.parametrize("isa", native.isas())


def wide(seed: int, n: int, k: int) -> native.Matrix:
    return native.Matrix.pack_wide(normal(seed, n, k), POOL)


def test_wide_rows_are_within_half_a_code_of_the_weights():
    w = normal(1, 21, 384)
    w[3, :128] = 0
    packed = native.Matrix.pack_wide(w, POOL)
    got = np.stack([packed.row(i) for i in range(21)])
    step = np.abs(w.reshape(21, 3, 128)).max(-1) / GREATEST
    assert packed.weight_type == "I16" and packed.nbytes == 2 * 16 * (384 * 2 + 3 * 4)
    assert (np.abs(got - w).reshape(21, 3, 128).max(-1) <= step * (0.5 + 1e-3)).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(poison):
    w = normal(1, 17, 256)
    w[16, 200] = poison
    with pytest.raises(BadModelFile, match="17 x 256 holds values that are not finite"):
        native.Matrix.pack_wide(w, POOL)


@every_isa
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_wide_activations_equal_the_reference(isa, scale):
    x = normal(5, 640) * np.float32(scale)
    x[:128] = 0
    q, s, _, _ = kernels.quantize(isa, x, 128)
    want_q, want_s, _, _ = kernels.quantize("reference", x, 128)
    assert same_bits(q, want_q) and same_bits(s, want_s)
    assert np.abs(q).max() == GREATEST


@every_isa
@pytest.mark.parametrize(("n", "k"), [(1, 128), (17, 384), (33, 1536)])
def test_wide_products_agree_with_reference(isa, n, k):
    """Integer dots are exact; one float sum over K/128 terms, each within max|w| sum|x| and rounded thrice."""
    w, x = wide(n, n, k), normal(k, 15, k)
    got, want = kernels.matmul(isa, w, x), kernels.matmul("reference", w, x)
    most = np.array([np.abs(w.row(i)).max() for i in range(n)])
    bound = (k // 128 + 4) * ULP * np.abs(x).sum(1)[:, None] * most
    assert (np.abs(got - want) <= bound).all()


@every_isa
def test_no_bit_of_a_wide_product_depends_on_the_tile_or_the_batch(isa):
    w, x = wide(3, 20, 256), normal(9, 29, 256)
    alone = np.concatenate([kernels.matmul(isa, w, x[i : i + 1]) for i in range(29)])
    for rows in (*range(1, 14), 24, 29):
        assert same_bits(kernels.matmul(isa, w, x[:rows], tile=29), alone[:rows])
    for tile in (2, 5, 12):
        assert same_bits(kernels.matmul(isa, w, x, tile=tile), alone)


@every_isa
def test_the_largest_wide_dots_do_not_overflow(isa):
    w = native.Matrix.pack_wide(np.resize(np.array([1, -1], np.float32), (16, 256)), POOL)
    x = np.stack([np.ones(256), np.resize([1, -1], 256), np.resize([-1, 1], 256)]).astype(np.float32)
    got, want = kernels.matmul(isa, w, x), kernels.matmul("reference", w, x)
    assert np.abs(want).max() > 255
    np.testing.assert_allclose(got, want, rtol=4 * ULP, atol=1e-4)


@every_isa
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_damaged_activations_give_nan_not_garbage(isa, poison):
    w, x = wide(1, 17, 256), normal(0, 2, 256)
    x[1, 100] = poison
    got = kernels.matmul(isa, w, x)
    assert np.isfinite(got[0]).all() and np.isnan(got[1]).all()


@every_isa
@pytest.mark.parametrize("n", [16, 96, 384, 1024])
def test_layer_norm_agrees_with_reference(isa, n):
    x, w, b = normal(1, n) * 3 + 2, normal(2, n), normal(3, n)
    got, want = kernels.layer_norm(isa, x, w, b, 1e-12), kernels.layer_norm("reference", x, w, b, 1e-12)
    # A mean of n/16 additions errs by as many half-ulps of the greatest; so does the variance.
    np.testing.assert_allclose(got, want, rtol=0, atol=(n / 16 + 16) * ULP * float(np.abs(x).max()))


@every_isa
def test_layer_norm_spreads_nan(isa):
    x = normal(0, 32)
    x[9] = np.nan
    assert np.isnan(kernels.layer_norm(isa, x, x, x, 1e-12)).all()


@every_isa
def test_gelu_agrees_with_reference(isa):
    """The tail's formula errs by 1.5e-7 / 2 of x; the rest is a few roundings."""
    x = np.concatenate([np.linspace(-12, 12, 4000), [0, -0.0, 1e30, -1e30, 100, -100, 1e-30, -1e-30]])
    x = np.resize(x, 4016).astype(np.float32)
    got, want = kernels.gelu_erf(isa, x), kernels.gelu_erf("reference", x)
    assert (np.abs(got - want) <= np.abs(x) * 1.2e-7 + np.abs(want) * 2 * ULP).all()
    assert np.isnan(kernels.gelu_erf(isa, np.full(16, np.nan, np.float32))).all()


def rows(seed: int, count: int, d: int) -> tuple[F32, F32, F32]:
    return normal(seed, count, d) * 2, normal(seed + 1, count, d) * 2, normal(seed + 2, count, d)


@every_isa
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 31, 32, 33, 130])
@pytest.mark.parametrize("d", [16, 24, 32, 48, 64, 72])
def test_attention_both_ways_agrees_with_reference(isa, count, d):
    q, k, v = rows(count, count, d)
    scale = 1 / math.sqrt(d)
    got, want = kernels.attend_both(isa, q, k, v, scale), kernels.attend_both("reference", q, k, v, scale)
    # A score errs by d half-ulps of up to 30, and weights by that; a mean keeps the error of its weights.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@every_isa
def test_a_row_attends_the_same_whatever_shares_its_tile(isa):
    """Rows repeated behind the last of a tile are not seen: the first nine queries of ten keep their bits."""
    q, k, v = rows(4, 10, 32)
    whole = kernels.attend_both(isa, q, k, v, 0.2)
    order = np.array([9, *range(9)])
    other = kernels.attend_both(isa, q[order], k, v, 0.2)
    assert same_bits(other[1:], whole[:9]) and same_bits(other[0], whole[9])


@every_isa
def test_attention_spreads_nan_to_who_sees_it(isa):
    q, k, v = rows(4, 20, 32)
    k[7, 3] = np.nan
    assert np.isnan(kernels.attend_both(isa, q, k, v, 0.2)).all()
    q, k, v = rows(4, 20, 32)
    q[7, 3] = np.nan
    bad = np.isnan(kernels.attend_both(isa, q, k, v, 0.2)).any(1)
    assert bad.tolist() == [i == 7 for i in range(20)]


ROUNDS = {"amx"}  # tables whose attention rounds to bfloat16 where it may


@every_isa
@pytest.mark.parametrize("count", [1, 31, 33, 128, 129, 300])
@pytest.mark.parametrize("d", [16, 24, 64, 72, 80])
def test_rounded_attention_agrees_with_the_reference_of_rounded_rows(isa, count, d):
    """Weights are rounded too, by 2^-9 of each, and their polynomial errs by 2^-13."""
    q, k, v = rows(count, count, d)
    scale = 1 / math.sqrt(d)
    got = kernels.attend_both(isa, q, k, v, scale, rounded=True)
    want = kernels.attend_both("reference", q, k, v, scale, rounded=isa in ROUNDS)
    assert np.abs(got - want).max() <= 2**-8 * np.abs(v).max()


@every_isa
@pytest.mark.parametrize("rounded", [False, True])
def test_no_bit_of_attention_depends_on_what_is_computed_together(isa, rounded):
    q, k, v = rows(5, 200, 72)
    whole = kernels.attend_both(isa, q, k, v, 0.2, rounded=rounded)
    for cut in (1, 7, 32, 100):
        assert same_bits(kernels.attend_both(isa, q, k, v, 0.2, rounded=rounded, cut=cut), whole)


@every_isa
def test_rounded_attention_follows_maxima_that_grow_and_fall(isa):
    """Keys grow by so much that later spans hold all of the weight, and for other queries none."""
    q, k, v = rows(6, 700, 32)
    k *= np.linspace(0.01, 12, 700, dtype=np.float32)[:, None]
    got = kernels.attend_both(isa, q, k, v, 1.0, rounded=True)
    want = kernels.attend_both("reference", q, k, v, 1.0, rounded=isa in ROUNDS)
    assert np.abs(got - want).max() <= 2**-8 * np.abs(v).max()
    assert np.isfinite(kernels.attend_both(isa, q * 1e4, k, v, 1.0, rounded=True)).all()


@every_isa
def test_rounded_attention_spreads_nan_to_who_sees_it(isa):
    for bits in (0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF):
        poison = np.array([bits], np.uint32).view(np.float32)[0]
        for which, rows_hit in (("q", [7]), ("k", range(200)), ("v", range(200))):
            q, k, v = rows(4, 200, 32)
            {"q": q, "k": k, "v": v}[which][7, 3] = poison
            bad = np.isnan(kernels.attend_both(isa, q, k, v, 0.2, rounded=True)).any(1)
            assert np.flatnonzero(bad).tolist() == list(rows_hit)
