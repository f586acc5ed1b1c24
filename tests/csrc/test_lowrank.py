"""The low-rank term of a plan's matmul ops: what NumPy computes, and a row's bits whatever its neighbours have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from tests.csrc.test_matmul import raw_rows

WIDTH, INNER, VOCAB, RANKS = 64, 96, 48, (16, 48)
POOL = native.Threads(2)
F32 = np.ndarray


@dataclass
class Made:
    """A plan of one gated layer with a residual, its float weights, and two adapters for it."""

    plan: native.Plan
    weights: dict[str, F32]
    pairs: list[dict[str, tuple[F32, F32, float]]]
    adapters: list[native.Adapter]


def packed(values: F32) -> native.Matrix:
    return native.Matrix.pack(
        np.ascontiguousarray(values).view(np.uint8).reshape(-1), "F32", *values.shape, POOL
    )


def made(kind: str, rows: int) -> Made:
    shapes = {
        "embed": (VOCAB, WIDTH),
        "v": (32, WIDTH),
        "gate": (INNER, WIDTH),
        "up": (INNER, WIDTH),
        "down": (WIDTH, INNER),
    }
    matrices = {
        name: native.Matrix.pack(raw_rows(kind, n, k).reshape(-1), kind, n, k, POOL)
        for name, (n, k) in shapes.items()
    }
    ones = np.ones(WIDTH, np.float32)
    plan = native.Plan(POOL, native.KvCache([(1, 32, 32)], 2, "f32"), rows)
    x = plan.embed(matrices["embed"])
    plan.linear(x, [matrices["v"]], [None], ones, 1e-6)  # read by no op; its term is computed all the same
    h = plan.gated(x, matrices["gate"], matrices["up"], "silu", ones, 1e-6)
    plan.linear_add(h, matrices["down"], x)
    plan.logits(x, matrices["embed"], ones, 1e-6)
    plan.finish()
    rng, adapters, pairs = np.random.default_rng(7), [], []
    for rank in RANKS:
        adapter, own = native.Adapter(), {}
        for name in ("v", "gate", "up", "down"):
            n, k = shapes[name]
            a, b = (rng.standard_normal(s, np.float32) * np.float32(0.2) for s in ((rank, k), (n, rank)))
            own[name] = (a, b, 0.25)
            adapter.add(matrices[name], packed(a), packed(b), 0.25)
        adapters.append(adapter)
        pairs.append(own)
    dense = {name: np.stack([m.row(i) for i in range(m.rows)]) for name, m in matrices.items()}
    return Made(plan, dense, pairs, adapters)


def run(it: Made, tokens: list[int], which: list[int]) -> F32:
    """Compute each row as a sequence of its own, row i with adapter which[i]."""
    count = len(tokens)
    numbers = np.arange(count, dtype=np.int32)
    table = np.zeros((count, 1), np.int32)
    return it.plan.run(
        np.array(tokens, np.int32), np.zeros(count, np.int32), numbers, table, numbers,
        adapters=it.adapters, row_adapters=np.array(which, np.int32),
    )[0]  # fmt: skip


def expected(it: Made, token: int, which: int) -> F32:
    pairs = it.pairs[which] if which >= 0 else {}

    def times(name: str, x: F32) -> F32:
        y = it.weights[name].astype(np.float64) @ x
        if name in pairs:
            a, b, scale = pairs[name]
            y = y + scale * (b.astype(np.float64) @ (a.astype(np.float64) @ x))
        return y

    def norm(x: F32) -> F32:
        return x / np.sqrt(np.mean(x * x) + 1e-6)

    x = it.weights["embed"][token].astype(np.float64)
    gate = times("gate", norm(x))
    x = x + times("down", gate / (1 + np.exp(-gate)) * times("up", norm(x)))
    return times("embed", norm(x))


def test_products_gain_what_numpy_computes():
    it = made("F32", 6)
    tokens, which = [3, 4, 5, 3, 3, 40], [-1, 0, 1, 0, 1, 1]
    got = run(it, tokens, which)
    for row, token, adapter in zip(got, tokens, which, strict=True):
        want = expected(it, token, adapter)
        np.testing.assert_allclose(row, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("count", [5, 18, 70])
def test_a_rows_bits_do_not_depend_on_its_neighbours_adapters(kind: str, count: int):
    it = made(kind, count)
    rng = np.random.default_rng(count)
    tokens = rng.integers(0, VOCAB, count).tolist()
    which = (
        np.sort(rng.integers(-1, 2, count)).tolist() if count == 70 else rng.integers(-1, 2, count).tolist()
    )
    together = run(it, tokens, which)
    for i in (0, 1, count // 2, count - 1):
        assert np.array_equal(run(it, [tokens[i]], [which[i]])[0], together[i])
    plain = run(it, tokens, [-1] * count)
    for i in range(count):
        assert np.array_equal(plain[i], together[i]) == (which[i] < 0)


def test_numbers_of_adapters_that_are_not_there_are_refused():
    it = made("F32", 2)
    for wrong in ([2, 0], [-2, 0]):
        with pytest.raises(UsageError, match="no adapter"):
            run(it, [1, 2], wrong)
    with pytest.raises(UsageError, match="a number for each row"):
        run(it, [1, 2], [0])
