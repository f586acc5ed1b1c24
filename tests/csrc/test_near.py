"""Ops over a row and those just before it: attention by distance, and a convolution of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.run.models.oracle.session import KvStore, NumpyOps, PictureRows

from . import F32, normal, same_bits
from .test_cuts import every, run

WIDTH, HEADS, WINDOW, TAPS = 64, 2, 12, 5
HEAD = WIDTH // HEADS
BACK, SCALE, KERNEL = normal(1, WINDOW * WIDTH), np.abs(normal(2, HEAD)), normal(3, WIDTH * TAPS)
LENGTHS = [70, 1, 29]
X = normal(4, sum(LENGTHS), 3 * WIDTH)


def forward(ops: Any, softcap: float = 50.0) -> None:
    """Compose both ops, each in a section of its own."""
    q, k, v = (ops.features(WIDTH, at) for at in (0, WIDTH, 2 * WIDTH))
    ops.section()
    out = ops.attend_near(q, k, v, HEADS, BACK, SCALE, softcap)
    ops.section()
    ops.hidden(ops.conv_near(out, KERNEL), [out, q])  # as wide as what enters


def composed(threads: int = 2, softcap: float = 50.0) -> native.Plan:
    plan = native.Plan(native.Threads(threads), None, 128)
    forward(plan, softcap)
    plan.finish()
    return plan


def judged(softcap: float) -> F32:
    groups = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    ops = NumpyOps(np.zeros(len(X), np.int64), KvStore(0, False), (), PictureRows(X, groups=groups))
    forward(ops, softcap)
    assert ops.result is not None
    return ops.result


@pytest.mark.parametrize("softcap", [0.0, 50.0, 2.0])
def test_both_agree_with_the_oracle(softcap: float):
    got, want = near(composed(softcap=softcap)), judged(softcap)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def near(plan: native.Plan, x: F32 = X, lengths: Sequence[int] = LENGTHS, cuts: Any = None) -> F32:
    return run(plan, x, lengths, cuts)


def test_no_bit_depends_on_cuts_batches_or_threads():
    whole = near(composed())
    assert same_bits(near(composed(1)), whole)
    for size in (1, 7, 32):
        assert same_bits(near(composed(), cuts=every(3, len(X), lambda _k: size)), whole)  # noqa: B023
    first = 0
    for count in LENGTHS:
        alone = near(composed(), X[first : first + count], [count])
        assert same_bits(alone, whole[first : first + count])
        first += count


def test_a_row_sees_itself_and_those_just_before_it_in_its_sequence():
    whole, changed = near(composed()), X.copy()
    changed[20] += 1
    moved = np.abs(near(composed(), changed) - whole).max(axis=1) > 0
    assert moved[20 : 20 + WINDOW].all() and not moved[:20].any()
    assert not moved[20 + WINDOW + TAPS - 1 :].any()


def test_nan_stays():
    bad = X.copy()
    bad[75] = np.nan
    got = [bool(np.isnan(row).any()) for row in near(composed(), bad)]
    assert got[75] and not any(got[:71])


def test_sizes_that_do_not_fit_are_refused():
    plan = native.Plan(native.Threads(1), None, 16)
    x = plan.features(WIDTH)
    for heads, back, scale, why in (
        (3, BACK, SCALE, "heads must divide"),
        (8, BACK, SCALE, "16 to 512 columns"),
        (HEADS, BACK[:-1], SCALE, "values of distances"),
        (HEADS, np.zeros(65 * WIDTH, np.float32), SCALE, "values of distances"),
        (HEADS, BACK, SCALE[:-1], "scales of 31 columns"),
    ):
        with pytest.raises(UsageError, match=why):
            plan.attend_near(x, x, x, heads, back, scale)
    with pytest.raises(UsageError, match="softcap"):
        plan.attend_near(x, x, x, HEADS, BACK, SCALE, -1.0)
    for taps in (0, 65):
        with pytest.raises(UsageError, match="weights for 64 channels"):
            plan.conv_near(x, np.zeros(taps * WIDTH + (taps == 0), np.float32))
