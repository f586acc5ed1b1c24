"""Products in bfloat16: those of rounded values, with sums as good as float32's, at every edge of a block."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

from . import normal

ISAS = [isa for isa in native.isas() if native.has_bf16_products(isa)]
SHAPES = [(1, 1, 1), (5, 33, 40), (37, 70, 1500), (33, 64, 896), (600, 50, 2100)]


def bf16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def exact(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the product of rounded values, and how far float32 sums may be from it."""
    a, b = bf16(x).astype(np.float64), bf16(w).astype(np.float64)
    return a @ b.T, 1e-6 * x.shape[1] ** 0.5 * (np.abs(a) @ np.abs(b).T)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_a_product_is_that_of_rounded_values(isa, m, n, k):
    x, w = normal(1, m, k), normal(2, n, k)
    want, bound = exact(x, w)
    assert (np.abs(native.bf16_product(x, w, isa) - want) <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width, tokens", [(1, 1), (33, 40), (128, 1500), (700, 65)])
def test_moments_grow_up_to_the_diagonal(isa, width, tokens):
    x, moments = normal(3, tokens, width + 5), np.zeros((width, width), np.float32)
    for _ in range(2):
        native.add_bf16_moments(x, 5, moments, isa)
    part = np.ascontiguousarray(x[:, 5:].T)
    want, bound = exact(part, part)
    below = np.tril_indices(width)
    assert (np.abs(moments - 2 * want)[below] <= 4 * bound[below]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_infinity_and_nan_stay_in_their_rows(isa):
    x, w = normal(4, 40, 64), normal(5, 40, 64)
    x[3, 7], x[9, 0] = np.inf, np.nan
    found = native.bf16_product(x, w, isa)
    assert not np.isfinite(found[[3, 9]]).any()
    assert np.isfinite(np.delete(found, [3, 9], axis=0)).all()


def test_a_table_without_such_products_says_so():
    assert not native.has_bf16_products("scalar")
    with pytest.raises(UsageError, match="bfloat16"):
        native.bf16_product(normal(1, 2, 3), normal(2, 2, 3), "scalar")


@pytest.mark.parametrize("isa", ISAS)
def test_shapes_that_do_not_match_are_refused(isa):
    with pytest.raises(UsageError, match="differ in K"):
        native.bf16_product(normal(1, 2, 3), normal(2, 2, 4), isa)
    with pytest.raises(UsageError, match="columns"):
        native.add_bf16_moments(normal(1, 2, 3), 2, np.zeros((2, 2), np.float32), isa)
