"""The ops of latent attention: the absorbed form is the expanded one, and no bit depends on how rows come."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import UsageError
from tests.csrc import F32, normal, same_bits
from tests.csrc.test_experts import of_type, packed

POOL = native.Threads(2)
EPS = 1e-6
HEADS, NOPE, TURNED, LATENT, VALUE, HIDDEN = 5, 32, 16, 48, 32, 64
WIDTH, TOKENS, SCALE = NOPE + TURNED, 64, 0.2
INV_FREQ = np.array([10_000 ** (-2 * i / TURNED) for i in range(TURNED // 2)], np.float32)
SIZES = {
    "embed": (TOKENS, HIDDEN),
    "q": (HEADS * WIDTH, HIDDEN),
    "kv": (LATENT + TURNED, HIDDEN),
    "k_b": (HEADS * LATENT, NOPE),
    "v_b": (HEADS * VALUE, LATENT),
}


@cache
def weights() -> dict[str, F32]:
    return {
        name: normal(i, *size) * np.float32(1.5 * size[1] ** -0.5)
        for i, (name, size) in enumerate(SIZES.items())
    }


@cache
def matrices() -> dict[str, native.Matrix]:
    eye = np.eye(HEADS * VALUE, dtype=np.float32)
    return {name: packed(w) for name, w in weights().items()} | {"head": packed(eye)}


NORM = 1 + normal(9, LATENT) * np.float32(0.1)


def plan(cache: native.KvCache, rows: int, pool: native.Threads = POOL) -> native.Plan:
    """Record attention over the embedding's rows; a head of ones gives each row's values as logits."""
    m = matrices()
    made = native.Plan(pool, cache, rows)
    q, kv = made.linear(made.embed(m["embed"]), [m["q"], m["kv"]], [None, None])
    absorbed = made.linear_heads(q, m["k_b"], HEADS, TURNED)
    made.latent_store(0, q, absorbed, kv, NORM, EPS, native.Rope(INV_FREQ, 1.0, True))
    sums = made.latent_attention(0, absorbed, LATENT, SCALE)
    made.logits(made.linear_heads(sums, m["v_b"], HEADS), m["head"], None)
    made.finish()
    return made


def run(chunks: list[int], pool: native.Threads = POOL, kv_type: str = "f32", beside: int = 0) -> F32:
    """Compute one sequence in pieces; `beside`: rows of another sequence in every step, which come first."""
    blocks = -(-sum(chunks) // native.BLOCK_TOKENS)
    made = plan(native.KvCache([(1, LATENT + TURNED, 0)], 2 * blocks, kv_type), max(chunks) + beside, pool)
    tables = np.arange(2 * blocks, dtype=np.int32).reshape(2, blocks)[::-1].copy()
    found, done = [], 0
    for n in chunks:
        rows = np.arange(beside, beside + n, dtype=np.int32)
        tokens = np.concatenate([np.arange(beside) % TOKENS, ids(sum(chunks))[done : done + n]])
        positions = np.concatenate([np.arange(beside), np.arange(done, done + n)])
        seqs = np.repeat([0, 1] if beside else [0], [beside, n] if beside else [n])
        step = [a.astype(np.int32) for a in (tokens, positions, seqs)]
        found.append(made.run(step[0], step[1], step[2], tables, rows)[0])
        done += n
    return np.concatenate(found)


def ids(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, TOKENS, count)


def turned(x: np.ndarray) -> np.ndarray:
    """Rotate adjacent pairs of [positions, ..., TURNED] by their position."""
    angle = np.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1)) * INV_FREQ.astype(np.float64)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    both = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
    return np.stack(both, -1).reshape(x.shape)


def expanded(count: int) -> np.ndarray:
    """Keys and values of every head from each latent, and plain attention, in float64."""
    w = {name: v.astype(np.float64) for name, v in weights().items()}
    x = w["embed"][ids(count)]
    q = (x @ w["q"].T).reshape(count, HEADS, WIDTH)
    kv = x @ w["kv"].T
    c, r = kv[:, :LATENT], turned(kv[:, LATENT:])
    c = c / np.sqrt((c * c).mean(-1, keepdims=True) + EPS) * NORM
    keys = np.einsum("tc,hcn->thn", c, w["k_b"].reshape(HEADS, LATENT, NOPE))
    keys = np.concatenate([keys, np.broadcast_to(r[:, None], (count, HEADS, TURNED))], -1)
    values = np.einsum("tc,hvc->thv", c, w["v_b"].reshape(HEADS, VALUE, LATENT))
    q = np.concatenate([q[..., :NOPE], turned(q[..., NOPE:])], -1)
    scores = np.einsum("ihd,jhd->hij", q, keys) * SCALE
    scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hij,jhv->ihv", p / p.sum(-1, keepdims=True), values).reshape(count, -1)


def test_absorbed_form_is_the_expanded_one():
    assert np.abs(run([300]) - expanded(300)).max() <= 2e-5


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_no_bit_depends_on_chunks_threads_or_neighbours(kv_type: str):
    whole = run([530], kv_type=kv_type)
    assert same_bits(whole, run([200, 300, *[1] * 30], kv_type=kv_type))
    assert same_bits(whole, run([7, 523], native.Threads(1), kv_type))
    assert same_bits(whole, run([256, 270, 1, 1, 1, 1], native.Threads(3), kv_type, beside=37))


KINDS = ["F32", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_NL"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 17, 300])
def test_a_head_multiplies_its_own_rows_with_its_own_inputs(kind: str, rows: int):
    heads, k, n, room = 3, 256, 32, 16
    x = normal(3, TOKENS, heads * (k + 64))
    matrix, dense = of_type(kind, heads * n, k)
    whole = native.Plan(POOL, native.KvCache([(1, 32, 32)], 1, "f32"), rows)
    y = whole.linear_heads(whole.embed(packed(x)), matrix, heads, room)
    whole.hidden(y)
    whole.finish()
    got = hidden(whole, rows).reshape(rows, heads, n + room)
    for h in range(heads):
        part = np.ascontiguousarray(x.reshape(TOKENS, heads, -1)[:, h, :k])
        exact = part[np.arange(rows) % TOKENS] @ dense[h * n : (h + 1) * n].T
        near = 0.03 if kind not in ("F32", "BF16") else 1e-4
        assert np.abs(got[:, h, :n] - exact).max() <= near * np.abs(exact).max()
    if rows > 1:
        assert same_bits(got[:1, :, :n], hidden(whole, 1).reshape(1, heads, -1)[..., :n])


def hidden(made: native.Plan, rows: int) -> F32:
    numbers, none = np.arange(rows, dtype=np.int32), np.zeros(0, np.int32)
    out = np.zeros((rows, made.hidden_width), np.float32)
    tokens = (numbers % TOKENS).astype(np.int32)
    zeros = np.zeros((rows, 1), np.int32)
    made.run(tokens, zeros[:, 0], numbers, zeros, none, hidden_rows=numbers, hidden=out)
    return out


def test_heads_that_do_not_fit_are_refused():
    made = native.Plan(POOL, native.KvCache([(1, 64, 0)], 1, "f32"), 1)
    x = made.embed(packed(normal(1, 4, 64)))
    with pytest.raises(UsageError, match="no multiple of 16"):
        made.linear_heads(x, packed(normal(2, 24, 32)), 2)
    with pytest.raises(UsageError, match="inputs for heads of 16"):
        made.linear_heads(x, packed(normal(2, 64, 32)), 4)
    with pytest.raises(UsageError, match="latent of 40"):
        made.latent_attention(0, x, 40, 1.0)


def test_an_adapter_for_products_by_head_is_refused():
    made = native.Plan(POOL, native.KvCache([(1, 64, 64)], 1, "f32"), 1)
    matrix = packed(normal(2, 32, 32))
    made.hidden(made.linear_heads(made.embed(packed(normal(1, 4, 64))), matrix, 2))
    made.finish()
    adapter = native.Adapter()
    adapter.add(matrix, packed(normal(3, 16, 32)), packed(normal(4, 32, 16)), 1.0)
    one, none = np.zeros(1, np.int32), np.zeros(0, np.int32)
    with pytest.raises(UsageError, match="an adapter cannot change"):
        made.run(one, one, one, np.zeros((1, 1), np.int32), none, adapters=[adapter], row_adapters=one)


def test_a_latent_layer_has_no_window_blocks():
    with pytest.raises(UsageError, match="layer 1 keeps latents of all positions"):
        native.KvCache([(1, 32, 32), (1, 64, 0)], 4, "f16", windows=[8, 8], window_blocks=2)


def test_a_layer_of_keys_and_values_keeps_no_latent():
    made = native.Plan(POOL, native.KvCache([(1, 64, 64)], 1, "f32"), 1)
    with pytest.raises(UsageError, match="keeps no latent"):
        made.latent_attention(0, made.embed(packed(normal(1, 4, 64))), 32, 1.0)
