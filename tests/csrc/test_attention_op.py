"""The op `attention`: sinks and chunks, against the oracle, however a sequence is divided into steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from freehold.base.layers import LayerSpec
from freehold.run.models.oracle.session import KvStore, NumpyOps, PictureRows
from tests.csrc import F32, normal, same_bits
from tests.csrc.test_experts import EPS, POOL, packed
from tests.csrc.test_routing import dense

HEADS, KV_HEADS, HEAD, WIDTH = 4, 2, 16, 64
EMBED = normal(1, 64, WIDTH)
PROJECTIONS = [normal(n, rows, WIDTH) * np.float32(0.2) for n, rows in ((2, 64), (3, 32), (4, 32))]
SINKS = np.array([0.5, -3.0, 4.0, 90.0], np.float32)
CASES: dict[str, dict[str, Any]] = {
    "sinks": {"sinks": SINKS},
    "sinks and a window": {"sinks": SINKS, "window": 8},
    "chunks inside a span": {"chunk": 8},
    "a chunk across spans": {"chunk": 300},
    "chunks of whole spans": {"chunk": 256},
    "pictures": {"both": True},
    "pictures and a window": {"both": True, "window": 90},
}
PICTURES = [
    (3, 30),
    (250, 330),
    (340, 341),
    (500, 590),
]  # positions [first, end) that see each other, where a step has them


def tokens(count: int) -> list[int]:
    return np.random.default_rng(7).integers(0, 64, count).tolist()


def ends_of(first: int, count: int) -> np.ndarray:
    """Return where rows stop looking: at the end of their picture, if all of it is in the step."""
    ends = np.arange(first + 1, first + count + 1, dtype=np.int32)
    for begin, end in PICTURES:
        if first <= begin and end <= first + count:
            ends[begin - first : end - first] = end
    return ends


def composed(ops: Any, x: Any, matrices: list[Any], options: dict[str, Any]) -> Any:
    q, k, v = ops.linear(x, matrices, [None] * 3)
    ops.rope_store(0, q, k, v, None)
    return ops.attention(0, q, HEAD**-0.5, **options)


def native_rows(steps: list[int], options: dict[str, Any], threads: native.Threads = POOL) -> F32:
    """Compute a sequence in steps of these sizes; return what attention gives, normalised as a head reads it."""
    ids, count = np.array(tokens(sum(steps)), np.int32), sum(steps)
    blocks = -(-count // 32)
    plan = native.Plan(threads, native.KvCache([(KV_HEADS, HEAD, HEAD)], blocks, "f32"), max(steps))
    x = plan.embed(packed(EMBED))
    a = composed(plan, x, [packed(w) for w in PROJECTIONS], options)
    plan.logits(a, packed(EMBED), np.ones(WIDTH, np.float32), EPS)
    plan.finish()
    out, none, at = np.zeros((count, WIDTH), np.float32), np.zeros(0, np.int32), 0
    for rows in steps:
        part, zero = np.arange(at, at + rows, dtype=np.int32), np.zeros(rows, np.int32)
        hidden = np.zeros((rows, WIDTH), np.float32)
        table = np.arange(blocks, dtype=np.int32)[None, :]
        wanted = np.arange(rows, dtype=np.int32)
        ends = ends_of(at, rows) if options.get("both") else None
        plan.run(ids[at : at + rows], part, zero, table, none, hidden_rows=wanted, hidden=hidden, ends=ends)
        out[at : at + rows] = hidden
        at += rows
    return out


def oracle_rows(count: int, options: dict[str, Any]) -> F32:
    pictures = PictureRows(ends=ends_of(0, count))
    spec = LayerSpec("full", 1, KV_HEADS, HEAD)
    ops = NumpyOps(np.array(tokens(count)), KvStore(1, False), [spec], pictures)
    a = composed(ops, EMBED[tokens(count)], [dense(w) for w in PROJECTIONS], options)
    return np.asarray(a / np.sqrt((a * a).mean(-1, keepdims=True) + EPS), np.float32)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [7, 40, 620])
def test_rows_are_what_the_oracle_computes(name: str, count: int):
    got = native_rows([count], CASES[name])
    np.testing.assert_allclose(got, oracle_rows(count, CASES[name]), atol=3e-5)


@pytest.mark.parametrize("name", CASES)
def test_no_bit_depends_on_how_a_sequence_is_divided(name: str):
    whole = native_rows([620], CASES[name])
    both = ([335, 265, 20], [30, 220, 370])  # none of them cuts a picture
    for steps in (
        both if "both" in CASES[name] else ([300, 200, 120], [7, 1, 1, 91, 500, 20], [256, 256, 107, 1])
    ):
        assert same_bits(native_rows(steps, CASES[name]), whole)
    assert same_bits(native_rows([619, 1], CASES[name], native.Threads(3)), whole)


@pytest.mark.parametrize("chunk", [8, 256])
def test_the_first_token_of_a_chunk_sees_itself_alone(chunk: int):
    """The token before the edge sees a whole chunk, so a window of as many tokens is something else at the edge."""
    chunked, windowed = (native_rows([2 * chunk], {key: chunk}) for key in ("chunk", "window"))
    values = EMBED[tokens(2 * chunk)] @ PROJECTIONS[2].T
    own = np.repeat(values.reshape(-1, KV_HEADS, 1, HEAD), HEADS // KV_HEADS, 2).reshape(len(values), -1)
    own = own / np.sqrt((own * own).mean(-1, keepdims=True) + EPS)
    np.testing.assert_allclose(chunked[chunk], own[chunk], atol=2e-5)
    assert same_bits(chunked[:chunk], windowed[:chunk])
    assert np.abs(chunked[chunk] - windowed[chunk]).max() > 0.01


def test_a_sink_joins_the_denominator_and_brings_no_value():
    """One token whose score is s: its value is weighed by exp(s) / (exp(s) + exp(sink))."""
    plain, sunk = oracle_raw({}), oracle_raw({"sinks": SINKS})
    q, k = (EMBED[tokens(1)] @ w.T for w in PROJECTIONS[:2])
    scores = np.array([q[0, h * HEAD :][:HEAD] @ k[0, h // 2 * HEAD :][:HEAD] for h in range(HEADS)]) / 4
    share = np.exp(scores - np.logaddexp(scores, SINKS.astype(np.float64)))
    np.testing.assert_allclose(sunk, plain * np.repeat(share, HEAD), atol=1e-6)
    got = native_rows([1], {"sinks": SINKS})[0]
    np.testing.assert_allclose(got, sunk / np.sqrt((sunk * sunk).mean() + EPS), atol=3e-5)


def oracle_raw(options: dict[str, Any]) -> F32:
    ops = NumpyOps(np.array(tokens(1)), KvStore(1, False), [LayerSpec("full", 1, KV_HEADS, HEAD)])
    return composed(ops, EMBED[tokens(1)], [dense(w) for w in PROJECTIONS], options)[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sinks": np.zeros(3, np.float32)}, "3 sinks for 4 heads"),
        ({"window": 8, "chunk": 8}, "a window or chunks, not both"),
        ({"chunk": -1}, "0 .none. or positive"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        native_rows([1], options)


def test_a_row_that_ends_outside_the_step_is_refused():
    cache = native.KvCache([(KV_HEADS, HEAD, HEAD)], 1, "f32")
    plan = native.Plan(POOL, cache, 4)
    x = plan.embed(packed(EMBED))
    plan.logits(composed(plan, x, [packed(w) for w in PROJECTIONS], {"both": True}), packed(EMBED), None)
    plan.finish()
    part, zero = np.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    for ends in ([1, 2, 3, 5], [1, 1, 3, 4]):
        with pytest.raises(UsageError, match="ends at"):
            plan.run(zero, part, zero, np.zeros((1, 1), np.int32), part[:1], ends=np.array(ends, np.int32))
