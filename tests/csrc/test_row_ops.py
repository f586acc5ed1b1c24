"""Ops between projections: norms of their own, rotation alone, clipping, temperature; each as the oracle means it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.base.layers import LayerSpec
from freehold.run.formats import QuantType, Tensor
from freehold.run.models.config.rope import RopeSpec
from freehold.run.models.oracle.arithmetic import gelu_tanh
from freehold.run.models.oracle.session import DenseMatrix, KvStore, NumpyOps
from tests.csrc import F32, normal, same_bits

POOL = native.Threads(2)
EPS = 1e-5
WIDTH, HEADS, HEAD = 64, 4, 16
ROPE = RopeSpec(base=100.0, width=8, adjacent=False)
TABLE = ROPE.table()
Program = Callable[[Any, Mapping[str, Any], Any], None]  # ops, matrices, rope; it ends in logits

VALUES = {
    "embed": normal(1, 64, WIDTH),
    "up": normal(2, 96, WIDTH) * np.float32(0.2),
    "down": normal(3, WIDTH, 96) * np.float32(0.2),
    "square": normal(4, WIDTH, WIDTH) * np.float32(0.2),
    "kv": normal(5, 2 * HEAD, WIDTH) * np.float32(0.2),
    "router": normal(9, 4, WIDTH),
    "gates": normal(10, 4 * 32, WIDTH) * np.float32(0.2),
    "ups": normal(11, 4 * 32, WIDTH) * np.float32(0.2),
    "downs": normal(12, 4 * WIDTH, 32) * np.float32(0.2),
    "pair": normal(13, 2 * WIDTH, WIDTH) * np.float32(0.2),
    "few": normal(14, 17, WIDTH),
    "wide": normal(15, 96, WIDTH) * np.float32(0.4),
}
WEIGHT, BIAS, WIDE = 1 + normal(6, WIDTH) / 4, normal(7, WIDTH), normal(8, 96)
SPEC = LayerSpec("full", 1, 2, HEAD)


def packed(values: F32) -> native.Matrix:
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    rows, columns = values.shape
    return native.Matrix.pack(raw, "F32", rows, columns, POOL)


def dense(name: str, values: F32) -> DenseMatrix:
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    return DenseMatrix(Tensor(name, QuantType.F32, values.shape, raw), True)


def meant(program: Program, rows: int, values: Mapping[str, F32] = VALUES) -> F32:
    ops = NumpyOps(np.arange(rows) % 64, KvStore(1, False), [SPEC])
    program(ops, {name: dense(name, each) for name, each in values.items()}, TABLE)
    assert ops.result is not None
    return ops.result


def computed(
    program: Program,
    rows: int,
    wanted: list[int] | None = None,
    threads: int = 2,
    values: Mapping[str, F32] = VALUES,
) -> F32:
    blocks = rows // native.BLOCK_TOKENS + 1
    cache = native.KvCache([(SPEC.kv_heads, HEAD, HEAD)], blocks, "f32")
    plan = native.Plan(native.Threads(threads), cache, rows)
    matrices = {name: packed(each) for name, each in values.items()}
    program(plan, matrices, native.Rope(TABLE.inv_freq, TABLE.factor, TABLE.adjacent))
    plan.finish()
    numbers = np.arange(rows, dtype=np.int32)
    wanted = list(range(rows)) if wanted is None else wanted
    logits, _ = plan.run(
        numbers % 64,
        numbers,
        np.zeros(rows, np.int32),
        np.arange(blocks, dtype=np.int32)[None, :],
        np.array(wanted, np.int32),
    )
    return logits


def layer_norms(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    n = ops.layer_normed(x, WEIGHT, None, EPS)
    a = ops.linear_act(ops.layer_normed(x, None, None, EPS), m["up"], "gelu_erf")
    ops.linear_add(n, m["square"], x)
    ops.linear_add(a, m["down"], x)
    heads = ops.layer_normed(x, WEIGHT, None, EPS, HEAD)
    ops.linear_add(heads, m["square"], x)
    ops.logits(ops.layer_normed(x, WEIGHT, BIAS, EPS), m["embed"], None, bias=BIAS, scale=0.25)


def without_gates(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    for act in ("gelu", "gelu_erf", "gelu_quick", "relu", "relu2"):
        h = ops.linear_act(x, m["up"], act, WIDE, WEIGHT, EPS)
        ops.linear_add(h, m["down"], x, BIAS, scale=0.22)
    ops.logits(x, m["embed"], WEIGHT, EPS)


def turned(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    q, k, v = ops.linear(x, (m["square"], m["kv"], m["kv"]), (None,) * 3, WEIGHT, EPS)
    for each in (q, k, v):
        ops.clamp(each, 0.5)
    for each in (q, k):
        ops.rotate(each, rope, HEAD)
    ops.rope_store(0, q, k, v, None, WEIGHT[:HEAD], WEIGHT[HEAD : 2 * HEAD], EPS)
    ops.temper(q, 0.3, 4, 1)
    a = ops.attention(0, q, 0.3)
    ops.scale(a, 2.0)
    ops.linear_add(a, m["square"], x)
    late = ops.norm(x, WEIGHT, EPS)
    ops.rotate(late, rope, HEAD)
    ops.linear_add(late, m["square"], x)
    ops.logits(x, m["embed"], WEIGHT, EPS)


def beside(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    wide = ops.norm(ops.linear(x, (m["up"],), (None,))[0], WEIGHT[:HEAD], EPS)
    part = ops.norm(x, WEIGHT, EPS)
    ops.multiply(part, wide, 32)
    ops.add(x, part)
    ops.logits(x, m["embed"], WEIGHT, EPS)


def weighed(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    routes = ops.route(x, m["router"], 2, norm=WEIGHT, eps=EPS, renormalise=True)
    ops.weigh(routes, np.arange(1, 5, dtype=np.float32))
    y = ops.experts(x, routes, m["gates"], m["ups"], m["downs"], None, act="gelu", norm=WEIGHT, eps=EPS)
    ops.add(x, y)
    ops.logits(x, m["embed"], WEIGHT, EPS)


STREAMS = 3
MIXERS = {
    "router": normal(20, STREAMS * WIDTH),
    "norm": (1 + normal(21, WIDTH) / 4) / np.float32(8),
    "predicted": normal(22, STREAMS**3),
    "corrected": normal(23, STREAMS**2),
}


def streams(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    first = ops.embed(m["embed"])
    (others,) = ops.linear(first, (m["pair"],), (None,))
    x = ops.spread(first, others, 1e-5)
    router, norm, predicted, corrected = MIXERS.values()
    for active in (0, 2):
        made = ops.predict(x, router, norm, predicted, active, EPS)
        gate, up = ops.linear(made, (m["up"], m["up"]), (None, WIDE), WEIGHT, EPS)
        ops.gaussian_gate(gate, up, 0.5)
        ops.linear_add(gate, m["down"], made)
        row = ops.correct(x, made, router, norm, corrected, WEIGHT, active, EPS)
        ops.add(x, row, WIDTH)
    rest = ops.linear_heads(ops.part(x, WIDTH, 2 * WIDTH), m["pair"], 2)
    ops.logits(ops.merge(x, rest, 1e-5), m["embed"], WEIGHT, EPS)


def clipped(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    n = ops.norm(x, WEIGHT, EPS)
    ops.clamp(n, 0.5, -0.25)
    gate, up = ops.linear(n, (m["up"], m["up"]), (None, WIDE))
    ops.clamp(gate, 0.75, 0.125)
    ops.clamp(up, -0.125, -2.0)
    ops.norm_gate(up, gate, None, act="gelu")
    ops.linear_add(up, m["down"], x)
    ops.logits(x, m["embed"], WEIGHT, EPS)


def beyond(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    ops.add(x, ops.embed(m["square"], 0.5, 3))  # of 64 rows, as many as tokens
    ops.add(x, ops.part(ops.embed(m["few"], 2.0, 3), 0, WIDTH))
    ops.logits(x, m["embed"], WEIGHT, EPS)


def gated_heads(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    for act in ("sigmoid", "softplus"):
        n = ops.norm(x, WEIGHT, EPS)
        (gate,) = ops.linear(x, (m["router"],), (None,))  # one of each head
        ops.gate_heads(n, gate, act=act)
        ops.linear_add(n, m["square"], x)
    ops.logits(x, m["embed"], WEIGHT, EPS)


def limited(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    for limit in (0.0, 0.05, 1.5, 7.0):
        h = ops.gated(x, m["up"], m["wide"], "silu", WEIGHT, EPS, limit)
        ops.linear_add(h, m["down"], x)
    ops.logits(x, m["embed"], WEIGHT, EPS)


def xielu(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
    x = ops.embed(m["embed"])
    for weights in ((0.8, 0.9, 0.5, -1e-6), (1.3, 0.6, 0.25, 0.0)):
        (h,) = ops.linear(x, (m["up"],), (WIDE,), WEIGHT, EPS)
        ops.xielu(h, *weights)
        ops.linear_add(h, m["down"], x, BIAS, scale=0.22)
    ops.logits(x, m["embed"], WEIGHT, EPS)


PROGRAMS = [layer_norms, without_gates, turned, beside, weighed, streams, clipped, beyond, gated_heads]
PROGRAMS += [limited, xielu]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_ops_compute_what_the_oracle_says(program: Program, rows: int):
    np.testing.assert_allclose(computed(program, rows), meant(program, rows), atol=2e-4)


@pytest.mark.parametrize("program", PROGRAMS)
def test_rows_have_the_same_bits_when_others_stop_early(program: Program):
    """Rows that want no logits are dropped after the last keys are stored; rotation comes after that too."""
    whole = computed(program, 40)
    assert same_bits(computed(program, 40, [3, 17, 39]), whole[[3, 17, 39]])
    assert same_bits(computed(program, 40, [39], threads=3), whole[[39]])


def test_temperature_begins_at_the_original_length_not_before():
    def at(first: int) -> F32:
        def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
            x = ops.embed(m["embed"])
            ops.temper(x, 1.0, first)
            ops.logits(x, m["embed"], None)

        return computed(program, 9)

    plain, tempered = at(100), at(4)
    factors = tempered[:, 0] / plain[:, 0]
    np.testing.assert_allclose(factors[:4], 1.0)
    np.testing.assert_allclose(factors[4:8], 1 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(factors[8], 1 + np.log(3), rtol=1e-6)


def test_a_clipped_value_that_is_not_a_number_stays_one():
    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        x = ops.embed(m["embed"], np.nan)
        ops.clamp(x, 1.0)
        ops.logits(x, m["embed"], None)

    assert np.isnan(computed(program, 2)).all()


def test_a_gate_at_the_cut_gives_nothing_and_its_neighbours_next_to_nothing():
    """Rounding decides on which side of the cut a gate lies; what it gives grows from 0 there, so neither shows."""
    gates = np.zeros((3, WIDTH), np.float32)
    gates[0] = 3.0  # no deviation: all lie at the cut, their mean
    gates[1, 0::2], gates[1, 1::2] = (
        1.0,
        -1.0,
    )  # deviation 1: the positive ones lie at the cut of one deviation
    gates[2] = gates[1]
    gates[2, 0] = np.nextafter(np.float32(1.0), np.float32(2.0))

    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        gate, up = ops.embed(m["gates"]), ops.embed(m["ones"])
        ops.gaussian_gate(gate, up, 1.0)
        ops.logits(gate, m["identity"], None)

    extra = {"gates": gates, "ones": np.ones_like(gates), "identity": np.eye(WIDTH, dtype=np.float32)}
    for logits in (computed(program, 3, values=extra), meant(program, 3, extra)):
        assert not logits[:2].any() and np.abs(logits[2]).max() < 1e-6


def test_a_gate_that_is_not_a_number_is_not_cut():
    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        gate, up = ops.embed(m["embed"], np.nan), ops.embed(m["embed"])
        ops.gaussian_gate(gate, up, 1.0)
        ops.logits(gate, m["embed"], None)

    assert np.isnan(computed(program, 2)).all()


def test_the_cut_divides_by_all_gates_not_by_one_less():
    gates = np.zeros((1, WIDTH), np.float32)
    gates[0, :2] = 4.0, -4.0  # deviation sqrt(32 / 64)

    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        gate, up = ops.embed(m["gates"]), ops.embed(m["ones"])
        ops.gaussian_gate(gate, up, 1.0)
        ops.logits(gate, m["identity"], None)

    extra = {"gates": gates, "ones": np.ones_like(gates), "identity": np.eye(WIDTH, dtype=np.float32)}
    left = np.array([4 - np.sqrt(0.5)], np.float32)
    assert computed(program, 1, values=extra)[0, 0] == pytest.approx(gelu_tanh(left)[0], rel=1e-6)


def test_gelu_in_place_has_its_exact_form():
    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        x = ops.embed(m["embed"], 3.0)
        ops.gelu(x)
        ops.logits(x, m["identity"], None)

    extra = {"embed": VALUES["embed"], "identity": np.eye(WIDTH, dtype=np.float32)}
    got, want = computed(program, 5, values=extra), meant(program, 5, extra)
    assert np.allclose(got, want, atol=1e-5) and np.abs(got - 3 * VALUES["embed"][:5]).max() > 1
    plan = native.Plan(POOL, native.KvCache([(2, HEAD, HEAD)], 1, "f32"), 4)
    with pytest.raises(UsageError, match="rows of 24 inputs, which 16 does not divide"):
        plan.gelu(plan.part(plan.embed(packed(VALUES["embed"])), 0, 24))


def test_xielu_keeps_its_precision_near_zero_and_far_below():
    """exp(x) - 1 - x is x^2 / 2 near 0, where exp(x) in float32 is 1."""
    values = -np.logspace(-6, 2.4, 64, dtype=np.float32)[None]
    values[0, ::7] *= -1

    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        x = ops.embed(m["values"])
        ops.xielu(x, 0.8, 0.9, 0.0, 0.0)
        ops.logits(x, m["identity"], None)

    extra = {"values": values, "identity": np.eye(WIDTH, dtype=np.float32)}
    got, want = computed(program, 1, values=extra), meant(program, 1, extra)
    np.testing.assert_allclose(got, want, rtol=3e-6)


def test_a_limit_of_a_gate_is_reached_and_not_passed():
    """silu reaches the limit where its argument is cut; NaN is not cut."""
    gates = np.linspace(-9, 9, 64, dtype=np.float32)[None]

    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        x = ops.gated(ops.embed(m["gates"], 1.0), m["identity"], m["ones"], "silu", None, 0.0, 0.75)
        ops.logits(x, m["identity"], None)

    identity = np.eye(WIDTH, dtype=np.float32)
    extra = {"gates": gates, "identity": identity, "ones": np.ones((WIDTH, WIDTH), np.float32)}
    got, want = computed(program, 1, values=extra), meant(program, 1, extra)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.isnan(computed(program, 1, values=extra | {"gates": np.full_like(gates, np.nan)})).all()


def test_streams_of_zeros_stay_zeros():
    def program(ops: Any, m: Mapping[str, Any], rope: Any) -> None:
        first = ops.embed(m["embed"], 0.0)
        x = ops.spread(first, ops.linear(first, (m["pair"],), (None,))[0], 1e-5)
        ops.logits(ops.merge(x, ops.part(x, WIDTH, 2 * WIDTH), 1e-5), m["embed"], None)

    assert not computed(program, 2).any() and not meant(program, 2).any()


def test_what_does_not_fit_is_refused():
    plan = native.Plan(POOL, native.KvCache([(2, HEAD, HEAD)], 1, "f32"), 4)
    m, rope = packed(VALUES["embed"]), native.Rope(TABLE.inv_freq, 1.0, False)
    x = plan.embed(m)
    with pytest.raises(UsageError, match="heads of 24 over rows of 64"):
        plan.rotate(x, rope, 24)
    with pytest.raises(UsageError, match="a rope wider than its heads"):
        plan.rotate(x, rope, 4)
    with pytest.raises(UsageError, match="groups of 24"):
        plan.layer_normed(x, None, None, EPS, 24)
    with pytest.raises(UsageError, match="a vector of 3 for rows of 64"):
        plan.layer_normed(x, np.ones(3, np.float32), None, EPS)
    with pytest.raises(UsageError, match="a limit above 0"):
        plan.clamp(x, 0.0)
    with pytest.raises(UsageError, match="which holds nothing"):
        plan.clamp(x, 0.5, 1.0)
    with pytest.raises(UsageError, match="which holds nothing"):
        plan.clamp(x, 0.5, np.nan)
    with pytest.raises(UsageError, match="no multiple of 16"):
        part = plan.part(x, 0, 24)
        plan.norm_gate(part, part, None, act="gelu")
    with pytest.raises(UsageError, match="24 gates do not divide a width of 64"):
        plan.gate_heads(x, plan.part(x, 0, 24), act="sigmoid")
    with pytest.raises(UsageError, match="act must be 'sigmoid' or 'softplus', got 'silu'"):
        plan.gate_heads(x, plan.part(x, 0, 4), act="silu")
    with pytest.raises(UsageError, match="act gelu takes no limit"):
        plan.gated(x, packed(VALUES["up"]), packed(VALUES["up"]), "gelu", None, 0.0, 1.0)
    with pytest.raises(UsageError, match="a limit must be 0"):
        plan.gated(x, packed(VALUES["up"]), packed(VALUES["up"]), "silu", None, 0.0, -1.0)
    with pytest.raises(UsageError, match="finite factors and an eps of 0 or less"):
        plan.xielu(x, 1.0, np.inf, 0.5, 0.0)
    with pytest.raises(UsageError, match="an original length of 1"):
        plan.temper(x, 0.1, 0)
    with pytest.raises(UsageError, match="act must be"):
        plan.linear_act(x, m, "silu")
    with pytest.raises(UsageError, match="a norm weight of 24 for rows of 64"):
        plan.norm(x, np.ones(24, np.float32), EPS)
    with pytest.raises(UsageError, match="64 inputs from 1 on of 64"):
        plan.multiply(x, x, 1)
    with pytest.raises(UsageError, match="add\\(\\) of 64 inputs to those from 32 on of 64"):
        plan.add(x, x, 32)
    with pytest.raises(UsageError, match="add\\(\\) of 32 inputs to 64 without `at`"):
        plan.add(x, plan.part(x, 0, 32))
    for options in ({"beyond": 64}, {"shown": 64}):
        with pytest.raises(UsageError, match="row 64 is outside a table of 64"):
            plan.embed(m, 1.0, **options)
    with pytest.raises(UsageError, match="part\\(\\) of 33 inputs from 32 on of 64"):
        plan.part(x, 32, 33)
    with pytest.raises(UsageError, match="a finite number of deviations"):
        plan.gaussian_gate(x, x, -np.inf)
    with pytest.raises(UsageError, match="what route"):
        plan.weigh(x, np.ones(4, np.float32))
    routes = plan.route(x, packed(VALUES["router"]), 2, renormalise=True)
    with pytest.raises(UsageError, match="3 weights of 4 experts"):
        plan.weigh(routes, np.ones(3, np.float32))
    with pytest.raises(UsageError, match="a bias that does not fit"):
        plan.logits(x, m, None, bias=np.ones(3, np.float32))


def test_streams_that_do_not_fit_are_refused():
    plan = native.Plan(POOL, native.KvCache([(2, HEAD, HEAD)], 1, "f32"), 4)
    first = plan.embed(packed(VALUES["embed"]))
    x = plan.spread(first, first, 1e-5)  # two streams
    router, norm, square = (normal(i, n) for i, n in ((30, 2 * WIDTH), (31, WIDTH), (32, 8)))
    with pytest.raises(UsageError, match="streams of 24 in rows of 128"):
        plan.predict(x, router, norm[:24], square, 0, EPS)
    with pytest.raises(UsageError, match="a router of 64 weights for rows of 128"):
        plan.predict(x, router[:WIDTH], norm, square, 0, EPS)
    with pytest.raises(UsageError, match="4 coefficients for 2 streams"):
        plan.predict(x, router, norm, square[:4], 0, EPS)
    with pytest.raises(UsageError, match="8 coefficients for 2 streams"):
        plan.correct(x, first, router, norm, square, norm, 0, EPS)
    with pytest.raises(UsageError, match="stream 2 of 2"):
        plan.predict(x, router, norm, square, 2, EPS)
    with pytest.raises(UsageError, match="a least mean square above 0"):
        plan.spread(first, first, 0.0)
    with pytest.raises(UsageError, match="merge\\(\\) of streams"):
        plan.merge(first, first, 1e-5)
