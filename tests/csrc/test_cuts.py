"""Plans that round to bfloat16, and sections that are computed some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError

from . import F32, normal, same_bits

WIDTH, HEADS, WIDE = 64, 2, 96
ROPE = native.Rope(np.array([1.0, 0.5, 0.1], np.float32), axes=np.array([0, 1, 2], np.uint8))
EPS = 1e-6
KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F32")
Cut = tuple[int, int, int]  # section, first row, end


def packed(kind: str, pool: native.Threads, rows: int, columns: int, seed: int) -> native.Matrix:
    values = normal(seed, rows, columns) * np.float32(columns**-0.5)
    raw = values if kind == "F32" else native.quantize_rows(values, kind, pool)
    return native.Matrix.pack(np.frombuffer(raw.tobytes(), np.uint8), kind, rows, columns, pool)


def composed(pool: native.Threads, *, rounds: bool, kind: str = "Q8_0", sections: bool = True) -> native.Plan:
    """A layer of a tower: qkv, turns, attention two heads apart, an MLP."""
    plan = native.Plan(pool, None, 512, rounds=rounds)
    unit, zero = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    x = plan.features(WIDTH)
    n = plan.layer_normed(x, unit, zero, EPS)
    weights = [packed(kind, pool, WIDTH, WIDTH, seed) for seed in (1, 2, 3)]
    q, k, v = plan.linear(n, weights, [zero + np.float32(0.1), None, None])
    plan.rotate(q, ROPE, WIDTH // HEADS)
    plan.rotate(k, ROPE, WIDTH // HEADS)
    out = -1
    for head in range(HEADS):
        if sections:
            plan.section()
        out = plan.attend_both(q, k, v, HEADS, 0.2, head, 1, out)
    plan.linear_add(out, packed(kind, pool, WIDTH, WIDTH, 4), x)
    if sections:
        plan.section()
    h = plan.linear_act(x, packed(kind, pool, WIDE, WIDTH, 5), "gelu", np.full(WIDE, 0.1, np.float32))
    plan.linear_add(h, packed(kind, pool, WIDTH, WIDE, 6), x)
    plan.hidden(x)
    plan.finish()
    return plan


def run(plan: native.Plan, x: F32, lengths: Sequence[int], cuts: Sequence[Cut] | None = None) -> F32:
    rows, out = len(x), np.empty_like(x)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    step = (
        np.zeros(rows, np.int32), (np.arange(rows) - starts).astype(np.int32),
        np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        np.zeros((len(lengths), 0), np.int32), np.zeros(0, np.int32),
    )  # fmt: skip
    places = np.arange(3 * rows, dtype=np.int32).reshape(rows, 3) % 17
    options = {"hidden_rows": np.arange(rows, dtype=np.int32), "hidden": out, "features": x, "places": places}
    if cuts is None:
        plan.run(*step, **options)
    for section, begin, end in cuts or ():
        plan.run(*step, **options, section=section, begin=begin, end=end)
    return out


def every(sections: int, rows: int, size: Callable[[int], int]) -> list[Cut]:
    starts = [range(0, rows, size(section)) for section in range(sections)]
    return [(k, begin, min(begin + size(k), rows)) for k, begins in enumerate(starts) for begin in begins]


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("kind", ["Q8_0", "F32"])
def test_no_bit_depends_on_cuts_batches_or_threads(rounds: bool, kind: str):
    pool = native.Threads(2)
    plan = composed(pool, rounds=rounds, kind=kind)
    x, lengths = normal(9, 300, WIDTH), [170, 1, 129]
    whole = run(plan, x, lengths)
    assert plan.sections == 4
    for size in (lambda _k: 1, lambda _k: 37, lambda k: 32 * (k + 1), lambda _k: 299):
        assert same_bits(run(plan, x, lengths, every(4, 300, size)), whole)
    assert same_bits(run(composed(native.Threads(1), rounds=rounds, kind=kind), x, lengths), whole)
    assert same_bits(run(plan, x[:170], [170]), whole[:170])
    assert same_bits(run(composed(pool, rounds=rounds, kind=kind, sections=False), x, lengths), whole)


def test_buffers_that_outlive_a_section_share_memory_with_none_of_it():
    """A cut's product lay where attention of the next cut reads keys, and wide rows over narrow ones of later cuts."""
    pool, unit = native.Threads(2), np.ones(WIDTH, np.float32)
    plan = native.Plan(pool, None, 512)
    x = plan.features(WIDTH)
    weights = [packed("Q8_0", pool, WIDTH, WIDTH, seed) for seed in (1, 2, 3)]
    q, k, v = plan.linear(x, weights, [None] * 3, unit, EPS)
    plan.section()
    out = plan.attend_both(q, k, v, HEADS, 0.2, 0, HEADS, -1)
    (y,) = plan.linear(out, [packed("Q8_0", pool, WIDTH, WIDTH, 4)], [None])
    plan.add_norm(x, y, unit, EPS)
    (narrow,) = plan.linear(x, [packed("Q8_0", pool, 32, WIDTH, 5)], [None])
    plan.section()
    wide = plan.linear_act(narrow, packed("Q8_0", pool, WIDE, 32, 6), "gelu")
    (y,) = plan.linear(wide, [packed("Q8_0", pool, WIDTH, WIDE, 7)], [None])
    plan.add(x, y)
    plan.hidden(x)
    plan.finish()
    values = normal(9, 300, WIDTH)
    whole = run(plan, values, [200, 100])
    for size in (1, 37, 299):
        assert same_bits(run(plan, values, [200, 100], every(3, 300, lambda _k: size)), whole)  # noqa: B023


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "rows"), [(16, 32, 1), (40, 288, 5), (96, 512, 47), (130, 1152, 100)])
def test_rounded_products_agree_with_the_weights(kind: str, n: int, k: int, rows: int):
    """Both factors move by 2^-9 of themselves; int8 rows, which other machines take, by 2^-8 of the greatest of 32."""
    pool = native.Threads(2)
    w, x, out = packed(kind, pool, n, k, n), normal(k, rows, k), np.empty((rows, n), np.float32)
    plan = native.Plan(pool, None, rows, rounds=True)
    (y,) = plan.linear(plan.features(k), [w], [None])
    plan.hidden(y)
    plan.finish()
    zeros = np.zeros(rows, np.int32)
    step = (zeros, np.arange(rows, dtype=np.int32), zeros, np.zeros((1, 0), np.int32), np.zeros(0, np.int32))
    plan.run(*step, features=x, hidden_rows=np.arange(rows, dtype=np.int32), hidden=out)
    weights = np.stack([w.row(i) for i in range(n)]).astype(np.float64)
    each = np.abs(x).reshape(rows, -1, 32).max(-1).repeat(32, axis=1)
    bound = 2**-8 * (np.maximum(np.abs(x), each) @ np.abs(weights).T) + 1e-6
    assert (np.abs(out - x @ weights.T) <= bound).all()


@pytest.mark.parametrize("act", ["gelu", "silu"])
@pytest.mark.parametrize("bias", [False, True])
def test_gates_that_round_stay_within_2_to_the_minus_9_of_themselves(act: str, bias: bool):
    """A row of one 1 picks a column of the weights, so sums are known exactly."""
    pool, n = native.Threads(1), 41
    far = [0, -0.0, 300, -300, 1e15, -1e15, 3e-8, -2e-5]
    values = np.concatenate([np.linspace(-12, 12, n - len(far)), far]).astype(np.float32)
    w = native.Matrix.pack(np.repeat(values, 32).astype(np.float32).view(np.uint8), "F32", n, 32, pool)
    x, out = np.zeros((3, 32), np.float32), np.empty((3, n), np.float32)
    x[np.arange(3), [0, 7, 31]] = 1
    plan = native.Plan(pool, None, 3, rounds=True)
    moved = np.linspace(-1, 1, n, dtype=np.float32) if bias else None
    if act == "gelu" and bias:
        y = plan.linear_act(plan.features(32), w, "gelu", moved)
    else:
        y = plan.gated(plan.features(32), w, w, act)
    plan.hidden(y)
    plan.finish()
    zeros, three = np.zeros(3, np.int32), np.arange(3, dtype=np.int32)
    step = (zeros, three, zeros, np.zeros((1, 0), np.int32), np.zeros(0, np.int32))
    plan.run(*step, features=x, hidden_rows=three, hidden=out)
    z = values.astype(np.float64) + (0 if moved is None or act == "silu" else moved)
    with np.errstate(over="ignore"):
        turned = z if act == "silu" else 1.5957691216 * (z + 0.044715 * z**3)
        want = z / (1 + np.exp(-turned)) * (1 if act == "gelu" and bias else values.astype(np.float64))
    least = 2.0**-99 * (1 + np.abs(z)) * (1 + np.abs(values))  # of a sigmoid
    assert (np.abs(out - want) <= 2**-9 * np.abs(want) + least).all()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFF800000])
def test_a_row_that_is_no_number_spoils_what_reads_it_alone(bits: int):
    plan, x = composed(native.Threads(2), rounds=True), normal(2, 60, WIDTH)
    want = run(plan, x, [40, 20])
    x[50, 9] = np.array([bits], np.uint32).view(np.float32)[0]
    got = run(plan, x, [40, 20])
    assert same_bits(got[:40], want[:40]) and not np.isfinite(got[40:]).any()


def test_cuts_out_of_order_or_of_nothing_are_refused():
    plan, x = composed(native.Threads(1), rounds=False), normal(2, 60, WIDTH)
    for cuts, why in (
        ([(0, 5, 60)], "does not follow"),
        ([(0, 0, 30), (1, 0, 60)], "does not follow"),
        ([(0, 0, 30), (0, 31, 60)], "does not follow"),
        ([(0, 0, 61)], "rows 0 to 61 of 60"),
        ([(0, 30, 20)], "rows 30 to 20 of 60"),
        ([(0, -1, 20)], "rows -1 to 20 of 60"),
        ([(-1, 0, 30)], "all sections takes all rows"),
    ):
        with pytest.raises(UsageError, match=why):
            run(plan, x, [60], cuts)
    run(plan, x, [60], every(4, 60, lambda _k: 20))


def test_a_section_whose_attention_reads_what_it_computes_is_not_cut():
    plan, x = composed(native.Threads(1), rounds=False, sections=False), normal(2, 60, WIDTH)
    with pytest.raises(UsageError, match="ops before its attention"):
        run(plan, x, [60], [(0, 0, 30)])
    cache = native.KvCache([(1, 16, 16)], 4)
    with pytest.raises(UsageError, match="does not round"):
        native.Plan(native.Threads(1), cache, 8, rounds=True)
