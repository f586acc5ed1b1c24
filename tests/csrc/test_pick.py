"""Attention to picked tokens: picks by their definition, fixed ties, and bits that depend on no other row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import UsageError
from tests.csrc import F32, normal
from tests.csrc.test_experts import packed

HEADS, LATENT, TURNED, INDEX, INDEX_HEADS, TOP = 5, 48, 16, 32, 16, 40
D, TOKENS = LATENT + TURNED, 64
ROPE = native.Rope(np.array([10_000 ** (-2 * i / TURNED) for i in range(TURNED // 2)], np.float32))
LENGTH = 3 * TOP + 21
CUTS = np.cumsum([0, HEADS * D, D, INDEX_HEADS * INDEX, INDEX, INDEX_HEADS])
TABLE = normal(3, TOKENS, int(CUTS[-1]))
IDS = np.random.default_rng(1).integers(0, TOKENS, LENGTH).astype(np.int32)
NORM = 1 + normal(5, INDEX) * np.float32(0.1)
BIAS = normal(6, INDEX) * np.float32(0.1)


def plan(cache: native.KvCache, rows: int, threads: int, index: float = 1.0) -> native.Plan:
    """Record a layer whose rows are the embedding's; an index of zeros scores all tokens alike."""
    made = native.Plan(native.Threads(threads), cache, rows)
    parts = [np.ascontiguousarray(TABLE[:, a:b]) for a, b in pairwise(CUTS)]
    parts[2] = parts[2] * np.float32(index)
    q, kv, index_q, index_k, weights = (made.embed(packed(part)) for part in parts)
    absorbed = made.embed(packed(parts[0]))
    made.latent_store(0, q, absorbed, kv, np.ones(LATENT, np.float32), 1e-6, ROPE, True)
    made.index_store(1, index_q, index_k, NORM, BIAS, 1e-6, ROPE, False)
    picks = made.pick(1, index_q, weights, TOP)
    sums = made.picked_attention(0, absorbed, picks, LATENT, 0.2)
    made.logits(sums, packed(np.eye(HEADS * LATENT, dtype=np.float32)), None)
    made.finish()
    return made


def run(chunks: list[int], threads: int = 1, kv_type: str = "f32", index: float = 1.0) -> F32:
    """Compute a sequence in pieces: the sums of each head's latents, [LENGTH, HEADS * LATENT]."""
    blocks = -(-LENGTH // native.BLOCK_TOKENS)
    made = plan(native.KvCache([(1, D, 0), (1, INDEX, 0)], blocks, kv_type), max(chunks), threads, index)
    table = np.arange(blocks, dtype=np.int32)[None, ::-1].copy()
    rows, done = [], 0
    for n in chunks:
        at = np.arange(n, dtype=np.int32)
        rows.append(made.run(IDS[done : done + n], at + done, at * 0, table, at)[0])
        done += n
    return np.concatenate(rows)


def expected(index: bool = True) -> F32:
    """The same by its definition, in float64."""

    def turned(x: NDArray[np.float64]) -> NDArray[np.float64]:
        out, half = x.copy(), TURNED // 2
        angle = np.arange(len(x))[:, None] * 10_000.0 ** (-2 * np.arange(half) / TURNED)
        cos, sin = (f(angle).reshape(len(x), *[1] * (x.ndim - 2), half) for f in (np.cos, np.sin))
        a, b = out[..., :half].copy(), out[..., half : 2 * half].copy()
        out[..., :half], out[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
        return out

    rows = TABLE[IDS].astype(np.float64)
    q, kv, index_q, index_k, weights = (rows[:, a:b] for a, b in pairwise(CUTS))
    q, index_q = q.reshape(LENGTH, HEADS, D), index_q.reshape(LENGTH, INDEX_HEADS, INDEX)
    q = np.concatenate([q[..., :LATENT], turned(q[..., LATENT:])], -1)
    latent = kv[:, :LATENT] / np.sqrt((kv[:, :LATENT] ** 2).mean(1, keepdims=True) + 1e-6)
    keys = np.concatenate([latent, turned(kv[:, LATENT:])], 1)
    middle = index_k - index_k.mean(1, keepdims=True)
    index_k = middle / np.sqrt((middle**2).mean(1, keepdims=True) + 1e-6) * NORM + BIAS
    index_q, index_k = turned(index_q), turned(index_k)
    scores = (
        np.einsum("rh,rhk->rk", weights, np.maximum(np.einsum("rhd,kd->rhk", index_q, index_k), 0)) * index
    )
    out = np.zeros((LENGTH, HEADS, LATENT))
    for t in range(LENGTH):
        picks = np.argsort(-scores[t, : t + 1], kind="stable")[:TOP]
        s = np.einsum("hd,kd->hk", q[t], keys[picks]) * 0.2
        p = np.exp(s - s.max(1, keepdims=True))
        out[t] = (p / p.sum(1, keepdims=True)) @ latent[picks]
    return out.reshape(LENGTH, -1).astype(np.float32)


def test_rows_attend_to_the_picks_of_their_definition():
    assert np.abs(run([LENGTH]) - expected()).max() < 1e-4


def test_equal_scores_pick_the_lower_positions():
    assert np.abs(run([LENGTH], index=0.0) - expected(index=False)).max() < 1e-4


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
@pytest.mark.parametrize("chunks", [[1] * LENGTH, [50, 1, 1, LENGTH - 52], [LENGTH - 1, 1]])
def test_no_bit_depends_on_chunks_or_threads(chunks: list[int], kv_type: str):
    whole = run([LENGTH], 1, kv_type)
    assert np.array_equal(run(chunks, 2, kv_type), whole)
    assert np.array_equal(run(chunks, 1, kv_type), whole)


@pytest.mark.parametrize(
    ("top", "message"), [(0, "picks 1 to 1048576 tokens, not 0"), (1 << 21, "not 2097152")]
)
def test_a_number_of_picks_out_of_range_is_refused(top: int, message: str):
    made = native.Plan(native.Threads(1), native.KvCache([(1, INDEX, 0)], 1, "f32"), 4)
    q, weights = (made.embed(packed(normal(1, 4, n))) for n in (INDEX_HEADS * INDEX, INDEX_HEADS))
    with pytest.raises(UsageError, match=message):
        made.pick(0, q, weights, top)


def test_a_layer_of_keys_and_values_has_no_index():
    made = native.Plan(native.Threads(1), native.KvCache([(1, INDEX, INDEX)], 1, "f32"), 4)
    q, weights = (made.embed(packed(normal(1, 4, n))) for n in (INDEX_HEADS * INDEX, INDEX_HEADS))
    with pytest.raises(UsageError, match="keeps no index"):
        made.pick(0, q, weights, TOP)
