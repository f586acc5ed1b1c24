"""Multi-head latent attention (MLA): one latent and one rotated key part a token serve all heads.

    q = Wq n [or Wqb norm(Wqa n)],  [c | r] = Wkva n,  c = norm(c),  n = norm(x)
    x += o(v_h sum_j p_hj c_j),  p_hj = softmax_j(scale * (k_h' q_nope . c_j + rope(q_rope) . rope(r_j)))

This is the absorbed form: k_h and v_h, the halves of Wkvb for head h, are applied to queries and to latents. Keys
and values of heads are never made, and a page holds c and the rotated r alone. Prefill and decode compute the same
sums, so their bits agree. The parts that turn come last in a head, and last in Wkva's rows.
Source: arXiv 2405.04434 (DeepSeek-V2), section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.base.layers import LayerSpec
from freehold.run.models.config.latents import LatentSizes
from freehold.run.models.config.rope import RopeSpec
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector

INNER_EPS = 1e-6  # of the norms inside, in all of these models, whatever the config says of the others


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention(LayerPart):
    """One layer's latent attention."""

    kinds = frozenset({"latent"})

    hidden: int
    heads: int
    latent: int
    query: int  # width that queries pass on their way; 0: one projection
    nope: int  # of a head's query: what does not turn, and what does
    turned: int
    value: int
    eps: float
    scale: float
    rope: RopeSpec | None  # None: nothing turns
    temper: tuple[float, int] | None = None  # queries grow with the position: by beta, from this length on
    residual: float = 1.0  # of what is added to x
    gate: str = ""  # safetensors' name of a matrix whose sigmoids, one a head, multiply what attention gives

    @classmethod
    def of(cls, cfg: LatentSizes, layer: int) -> LatentAttention:
        """Take the sizes of a layer out of a config."""
        return cls(
            hidden=cfg.hidden,
            heads=cfg.heads[layer],
            latent=cfg.latent,
            query=cfg.query,
            nope=cfg.nope,
            turned=cfg.turned,
            value=cfg.value,
            eps=cfg.eps,
            scale=cfg.scale,
            rope=cfg.rope,
            temper=cfg.temper,
        )

    @property
    def keeps(self) -> LayerSpec:
        """A latent and a key part of every token."""
        return LayerSpec("latent", latent=self.latent, rope=self.turned)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections and the norms; a GGUF holds Wkvb as its halves, k transposed."""
        width, hidden, heads = self.heads * (self.nope + self.turned), self.hidden, self.heads
        specs = {
            "attn_norm": vector("attn_norm.weight", "input_layernorm.weight", hidden),
            "kv_a": matrix(
                "attn_kv_a_mqa.weight", _hf("kv_a_proj_with_mqa"), self.latent + self.turned, hidden
            ),
            "kv_norm": vector("attn_kv_a_norm.weight", _hf("kv_a_layernorm"), self.latent),
            "k_b": self._half("k", (heads, self.latent, self.nope)),
            "v_b": self._half("v", (heads, self.value, self.latent)),
            "o": matrix("attn_output.weight", _hf("o_proj"), hidden, heads * self.value),
        }
        if self.gate:
            specs["q_gate"] = matrix("attn_gate.weight", _hf(self.gate), heads, hidden)
        if not self.query:
            return specs | {"q": matrix("attn_q.weight", _hf("q_proj"), width, hidden)}
        return specs | {
            "q_a": matrix("attn_q_a.weight", _hf("q_a_proj"), self.query, hidden),
            "q_norm": vector("attn_q_a_norm.weight", _hf("q_a_layernorm"), self.query),
            "q": matrix("attn_q_b.weight", _hf("q_b_proj"), width, self.query),
        }

    def _half(self, key: str, shape: tuple[int, int, int]) -> TensorSpec:
        names = [self._cut(name, key) for name in ("attn_kv_b.weight", _hf("kv_b_proj"))]
        gguf = (f"attn_{key}_b.weight", names[0])
        return TensorSpec(gguf=gguf, hf=(names[1],), shape=shape, adaptable=False)

    def _cut(self, joint: str, key: str) -> Cut:
        """Rows of Wkvb go by heads, k before v; queries are multiplied with k transposed."""
        both = self.nope + self.value
        shape = (self.heads * both, self.latent)
        if key == "k":
            by_head = (self.heads, both, self.latent)
            return Cut(
                joint, shape, take=lambda w: w.reshape(by_head)[:, : self.nope].swapaxes(1, 2), decode=True
            )
        rows: NDArray[np.int64] = np.arange(self.heads)[:, None] * both + np.arange(self.nope, both)
        return Cut(joint, shape, rows=rows.reshape(-1))

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose projections, absorption, cache write, attention over latents, values and output."""
        first = w["q_a"] if self.query else w["q"]
        read = (first, w["kv_a"], *((w["q_gate"],) if self.gate else ()))
        q, kv, *gate = ops.linear(x, read, (None,) * len(read), w["attn_norm"], self.eps)
        if self.query:
            (q,) = ops.linear(q, (w["q"],), (None,), w["q_norm"], INNER_EPS)
        if self.temper:
            ops.temper(q, *self.temper)
        absorbed = ops.linear_heads(q, w["k_b"], self.heads, self.turned)
        ops.latent_store(layer, q, absorbed, kv, w["kv_norm"], INNER_EPS, w.get("rope"))
        sums = ops.latent_attention(layer, absorbed, self.latent, self.scale)
        a = ops.linear_heads(sums, w["v_b"], self.heads)
        for each in gate:
            ops.gate_heads(a, each, act="sigmoid")
        ops.linear_add(a, w["o"], x, scale=self.residual)


def _hf(name: str) -> str:
    return f"self_attn.{name}.weight"
