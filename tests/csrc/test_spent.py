"""Processor time by op: counted only where it is asked for, from zero each time."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

from . import normal
from .test_matmul import POOL


def plan() -> native.Plan:
    made = native.Plan(POOL, native.KvCache([(1, 32, 32)], 1), 8)
    raw = normal(0, 64, 64).view(np.uint8).reshape(-1)
    x = made.embed(native.Matrix.pack(raw, "F32", 64, 64, POOL))
    made.logits(x, native.Matrix.pack(raw, "F32", 64, 64, POOL), np.ones(64, np.float32), 1e-6)
    return made


def run(made: native.Plan) -> None:
    rows = np.arange(8, dtype=np.int32)
    made.run(rows, rows, np.zeros_like(rows), np.zeros((1, 1), np.int32), rows)


def test_time_is_counted_by_op_in_the_plans_order_from_watch_on():
    made = plan()
    made.finish()
    run(made)
    assert made.spent() == []
    made.watch()
    assert [seconds for _, seconds in made.spent()] == [0, 0]
    run(made)
    names, seconds = zip(*made.spent(), strict=True)
    assert names == ("Embed", "Logits")
    assert all(second > 0 for second in seconds)
    made.watch()
    assert [seconds for _, seconds in made.spent()] == [0, 0]


def test_a_plan_is_watched_after_it_is_finished():
    with pytest.raises(UsageError, match="watch"):
        plan().watch()
