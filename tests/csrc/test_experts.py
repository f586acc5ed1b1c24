"""A mixture's ops: what NumPy computes, a row's bits whatever its neighbours choose, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.run.formats.blocks import QuantType, dequantize
from tests.csrc import F32, normal, same_bits
from tests.csrc.test_matmul import CODED, coded, raw_rows

POOL = native.Threads(2)
EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes of one mixture, and how its router weighs."""

    experts: int = 8
    top_k: int = 2
    width: int = 64
    inner: int = 32
    renormalise: bool = True
    act: str = "silu"


@dataclass
class Mixture:
    """The matrices of a mixture, the floats that they stand for, and rows to put through it."""

    shape: Shape
    matrices: dict[str, native.Matrix]
    dense: dict[str, F32]
    norm: F32

    def plan(self, rows: int, pool: native.Threads = POOL) -> native.Plan:
        """Record x += experts(norm x), which a step returns as hidden rows."""
        s, m = self.shape, self.matrices
        plan = native.Plan(pool, native.KvCache([(1, 32, 32)], 1, "f32"), rows)
        x = plan.embed(m["embed"])
        routes = plan.route(x, m["router"], s.top_k, norm=self.norm, eps=EPS, renormalise=s.renormalise)
        plan.experts(x, routes, m["gate"], m["up"], m["down"], x, act=s.act, norm=self.norm, eps=EPS)
        plan.logits(x, m["embed"], np.ones(s.width, np.float32), EPS)
        plan.finish()
        return plan


def packed(values: F32) -> native.Matrix:
    rows, columns = values.shape
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    return native.Matrix.pack(raw, "F32", rows, columns, POOL)


def of_type(kind: str, rows: int, columns: int) -> tuple[native.Matrix, F32]:
    """Pack random rows of a GGUF type; return the matrix and its floats."""
    if kind in CODED:
        return coded(kind, rows, columns)
    raw = raw_rows(kind, rows, columns)
    matrix = native.Matrix.pack(raw.reshape(-1), kind, rows, columns, POOL)
    return matrix, dequantize(raw, QuantType[kind], columns)


def mixture(shape: Shape, kind: str = "F32", tokens: int = 64) -> Mixture:
    """Make a mixture with experts of one type; the embedding's rows are the rows to put through it."""
    s = shape
    scale = np.float32(0.5 * s.width**-0.5)
    dense = {"embed": normal(1, tokens, s.width), "router": normal(2, s.experts, s.width) * 4 * scale}
    matrices = {name: packed(w) for name, w in dense.items()}
    sizes = {"gate": (s.inner, s.width), "up": (s.inner, s.width), "down": (s.width, s.inner)}
    for name, (rows, columns) in sizes.items():
        if kind == "F32":
            dense[name] = normal(len(name), s.experts * rows, columns) * scale
            matrices[name] = packed(dense[name])
        else:
            matrices[name], dense[name] = of_type(kind, s.experts * rows, columns)
    return Mixture(s, matrices, dense, 1 + normal(3, s.width) * np.float32(0.1))


def run(it: Mixture, tokens: list[int], pool: native.Threads = POOL) -> F32:
    """Compute each token as a sequence of its own; return the rows that come out, normalised as a head reads them."""
    plan, count = it.plan(len(tokens), pool), len(tokens)
    numbers, none = np.arange(count, dtype=np.int32), np.zeros(0, np.int32)
    hidden = np.zeros((count, it.shape.width), np.float32)
    plan.run(
        np.array(tokens, np.int32), np.zeros(count, np.int32), numbers, np.zeros((count, 1), np.int32), none,
        hidden_rows=numbers, hidden=hidden,
    )  # fmt: skip
    return hidden


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def chosen(scores: np.ndarray, top_k: int) -> np.ndarray:
    """The ids of the greatest scores, ascending; of equals the lowest."""
    return np.sort(np.argsort(-scores, kind="stable")[:top_k])


def meaning(it: Mixture, token: int) -> np.ndarray:
    """The mixture in plain float64."""
    s, w = it.shape, it.dense
    x = w["embed"][token].astype(np.float64)
    n = rms(x) * it.norm
    scores = w["router"].astype(np.float64) @ n
    p = np.exp(scores - scores.max())
    p /= p.sum()
    ids = chosen(scores, s.top_k)
    weights = p[ids] / p[ids].sum() if s.renormalise else p[ids]
    y = x.copy()
    for e, weight in zip(ids, weights, strict=True):
        gate, up, down = (
            w[name].reshape(s.experts, -1, w[name].shape[1])[e] for name in ("gate", "up", "down")
        )
        g = gate.astype(np.float64) @ n
        tanh = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
        y += weight * (down @ ((g / (1 + np.exp(-g)) if s.act == "silu" else tanh) * (up @ n)))
    return rms(y)


SHAPES = [
    Shape(4, 1, renormalise=False),
    Shape(4, 2, act="gelu"),
    Shape(8, 8, inner=48),
    Shape(60, 4, width=96, renormalise=False),
    Shape(128, 8, inner=96),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 17, 600])
def test_rows_gain_what_numpy_computes(shape: Shape, rows: int):
    it = mixture(shape)
    tokens = np.random.default_rng(rows).integers(0, 64, rows).tolist()
    got = run(it, tokens)
    for i in sorted({0, 1, rows // 2, rows - 1} & set(range(rows))):
        np.testing.assert_allclose(got[i], meaning(it, tokens[i]), atol=2e-5)


KINDS = ["F32", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_NL"]


def wide(kind: str) -> Shape:
    """A shape whose rows fill the type's blocks, and, where they need not, leave a last unit unfinished."""
    return Shape(8, 3, width=512, inner=256) if kind.endswith("_K") else Shape(8, 3, width=288, inner=96)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_experts_stay_near_numpy(kind: str):
    it = mixture(wide(kind), kind)
    tokens = list(range(40))
    got = run(it, tokens)
    for i in (0, 20, 39):
        want = meaning(it, tokens[i])
        assert np.abs(got[i] - want).max() < 0.03 * np.abs(want).max()


@pytest.mark.parametrize("kind", KINDS)
def test_one_expert_has_the_bits_of_a_gated_mlp(kind: str):
    shape = wide(kind)
    it = mixture(Shape(1, 1, shape.width, shape.inner), kind)
    for count in (1, 3, 40):
        plan, m = native.Plan(POOL, native.KvCache([(1, 32, 32)], 1, "f32"), count), it.matrices
        x = plan.embed(m["embed"])
        plan.linear_add(plan.gated(x, m["gate"], m["up"], "silu", it.norm, EPS), m["down"], x)
        plan.logits(x, m["embed"], np.ones(shape.width, np.float32), EPS)
        plan.finish()
        numbers, none = np.arange(count, dtype=np.int32), np.zeros(0, np.int32)
        want = np.zeros((count, shape.width), np.float32)
        plan.run(
            numbers, np.zeros(count, np.int32), numbers, np.zeros((count, 1), np.int32), none,
            hidden_rows=numbers, hidden=want,
        )  # fmt: skip
        assert same_bits(run(it, list(range(count))), want)


# Groups of one row, of a few, and of enough for a gemm; 600 rows for two types, as the scalar table is slow.
COUNTS = [*((kind, count) for kind in KINDS for count in (2, 5, 17)), ("F32", 600), ("Q4_K", 600)]


@pytest.mark.parametrize(("kind", "count"), COUNTS)
def test_a_rows_bits_do_not_depend_on_its_batch(kind: str, count: int):
    it = mixture(wide(kind), kind)
    tokens = np.random.default_rng(count).integers(0, 64, count).tolist()
    together = run(it, tokens)
    for i in {0, 1, count // 2, count - 1}:
        assert same_bits(run(it, [tokens[i]])[0], together[i])
    assert same_bits(run(it, tokens, native.Threads(1)), together)
    assert same_bits(run(it, tokens, native.Threads(3)), together)


def test_many_rows_may_choose_one_expert():
    """Every row alike: one block takes more rows than a gemm does at once, and the other experts have none."""
    it = mixture(Shape(16, 1, 256, 256), "Q4_K")
    assert same_bits(run(it, [5] * 1100), np.repeat(run(it, [5]), 1100, 0))


def test_of_equal_scores_the_lowest_id_is_chosen():
    it = mixture(Shape(12, 3))
    it.dense["router"][:] = it.dense["router"][0]
    it.dense["router"][4] *= -1
    it.matrices["router"] = packed(it.dense["router"])
    for token in range(6):
        scores = it.dense["router"] @ (rms(it.dense["embed"][token]) * it.norm)
        ids = [0, 1, 2] if scores[0] > scores[4] else [0, 1, 4]
        assert chosen(np.round(scores, 4), 3).tolist() == ids
        np.testing.assert_allclose(run(it, [token])[0], meaning(it, token), atol=2e-5)


def test_a_router_that_is_not_finite_gives_rows_that_are_not():
    it = mixture(Shape(8, 2))
    it.dense["router"][3, 7] = np.nan
    it.matrices["router"] = packed(it.dense["router"])
    assert np.isnan(run(it, [1, 2, 3])).all()


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_a_gate_multiplies_what_linear_add_adds(rows: int):
    width = 64
    embed, weight, gate = normal(1, 64, width), normal(2, width, width) * np.float32(0.1), normal(3, 1, width)
    plan = native.Plan(POOL, native.KvCache([(1, 32, 32)], 1, "f32"), rows)
    x = plan.embed(packed(embed))
    (g,) = plan.linear(x, [packed(gate)], [None])
    n = plan.norm(x, np.ones(width, np.float32), EPS)
    plan.linear_add(n, packed(weight), x, gate=g)
    plan.logits(x, packed(embed), np.ones(width, np.float32), EPS)
    plan.finish()
    numbers, none = np.arange(rows, dtype=np.int32), np.zeros(0, np.int32)
    got = np.zeros((rows, width), np.float32)
    plan.run(
        numbers, np.zeros(rows, np.int32), numbers, np.zeros((rows, 1), np.int32), none,
        hidden_rows=numbers, hidden=got,
    )  # fmt: skip
    x64 = embed[:rows].astype(np.float64)
    want = x64 + 1 / (1 + np.exp(-x64 @ gate.T)) * (rms(x64) @ weight.T)
    np.testing.assert_allclose(got, rms(want), atol=2e-5)


def test_an_adapter_for_experts_is_refused():
    it = mixture(Shape())
    plan = it.plan(1)
    none, one = np.zeros(0, np.int32), np.zeros(1, np.int32)
    for name in ("router", "gate", "up", "down"):
        rows, columns = it.dense[name].shape
        adapter = native.Adapter()
        adapter.add(it.matrices[name], packed(normal(1, 16, columns)), packed(normal(1, rows, 16)), 1.0)
        with pytest.raises(UsageError, match="an adapter cannot change"):
            plan.run(one, one, one, np.zeros((1, 1), np.int32), none, adapters=[adapter], row_adapters=one)
    plan.run(one, one, one, np.zeros((1, 1), np.int32), none)


def test_what_does_not_fit_is_refused():
    it = mixture(Shape(8, 2))
    m = it.matrices
    plan = native.Plan(POOL, native.KvCache([(1, 32, 32)], 1, "f32"), 4)
    x = plan.embed(m["embed"])
    for top_k in (0, 9):
        with pytest.raises(UsageError, match="top_k must be 1 to 8"):
            plan.route(x, m["router"], top_k, renormalise=True)
    with pytest.raises(UsageError, match="a router is a matrix of floats"):
        plan.route(x, of_type("Q8_0", 8, 64)[0], 2, renormalise=True)
    with pytest.raises(UsageError, match="takes what route"):
        plan.experts(x, x, m["gate"], m["up"], m["down"], x, act="silu")
    routes = plan.route(x, m["router"], 2, renormalise=True)
    for gate, up, down in (("down", "up", "down"), ("gate", "router", "down"), ("gate", "up", "gate")):
        with pytest.raises(UsageError, match="experts that do not fit 8 of 64"):
            plan.experts(x, routes, m[gate], m[up], m[down], x, act="silu")
    with pytest.raises(UsageError, match="act must be"):
        plan.experts(x, routes, m["gate"], m["up"], m["down"], x, act="relu")
    with pytest.raises(UsageError, match="takes no bias"):
        plan.linear_add(
            x,
            packed(normal(1, 64, 64)),
            x,
            np.zeros(64, np.float32),
            gate=plan.linear(x, [packed(normal(1, 1, 64))], [None])[0],
        )


@pytest.mark.heavy
@pytest.mark.parametrize("isa", [name for name in native.isas() if name != native.isa()])
@pytest.mark.skipif("FREEHOLD_ISA" in os.environ, reason="runs with one table already")
def test_every_other_table_gives_the_same_claims(isa: str):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"FREEHOLD_ISA": isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
