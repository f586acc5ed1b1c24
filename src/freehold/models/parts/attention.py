"""Grouped-query attention with rotary positions, over all tokens or a sliding window.

    x += o(attention(rope(q n), rope(k n), v n)),  n = norm(x)

Variants are fields: biases, an RMS norm on queries and keys (of each head, or over the whole projection), a norm after
the output (Gemma's sandwich), a soft cap on scores.
Sources: arXiv 2305.13245 (grouped queries), 2104.09864 (rotary positions).
Path: families.<family>.layer -> Attention -> Network.forward
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from freehold.layers import LayerSpec
from freehold.models.family import LayerPart, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops
from freehold.models.rope import RopeSpec
from freehold.models.sizes import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(LayerPart):
    """One layer's attention."""

    kinds = frozenset({"full", "window"})

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope: RopeSpec | None
    window: int = 0  # 0: every token before is seen
    scale: float = 0.0  # of query times key; 0: head_dim ** -0.5
    softcap: float = 0.0
    bias: Literal["none", "qkv", "any"] = "none"  # any: on all four, where the file has them
    qk_norm: Literal["none", "head", "width"] = "none"
    post_norm: bool = False
    norm_offset: float = 0.0  # of norms in safetensors
    gguf_pairs: bool = False  # a GGUF lays rows of q and k in adjacent rotary pairs, safetensors in halves

    @classmethod
    def of(cls, cfg: Sizes, layer: int, **options: Any) -> Attention:
        """Take the sizes of a layer out of a config."""
        sizes: dict[str, Any] = {
            "hidden": cfg.hidden,
            "heads": cfg.heads[layer],
            "kv_heads": cfg.kv_heads[layer],
            "head_dim": cfg.head_dim,
            "eps": cfg.eps,
            "rope": cfg.rope,
            "window": cfg.windows[layer],
        }
        return cls(**sizes | options)

    @property
    def keeps(self) -> LayerSpec:
        """Keys and values of all tokens, or of the window."""
        kind = "window" if self.window else "full"
        return LayerSpec(kind, 1, self.kv_heads, self.head_dim, window=self.window)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, and the norms and biases that the variant has."""
        q, kv, hidden = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden
        turns = {"head": self.head_dim} if self.gguf_pairs else {}
        found = {
            "attn_norm": self._norm("attn_norm", "input_layernorm", hidden),
            "q": matrix("attn_q.weight", "self_attn.q_proj.weight", q, hidden, **turns),
            "k": matrix("attn_k.weight", "self_attn.k_proj.weight", kv, hidden, **turns),
            "v": matrix("attn_v.weight", "self_attn.v_proj.weight", kv, hidden),
            "o": matrix("attn_output.weight", "self_attn.o_proj.weight", hidden, q),
        }
        if self.bias != "none":
            maybe = self.bias == "any"
            for key, width in (("q", q), ("k", kv), ("v", kv)):
                names = f"attn_{key}.bias", f"self_attn.{key}_proj.bias"
                found[f"{key}_bias"] = vector(*names, width, optional=maybe)
        if self.bias == "any":
            names = "attn_output.bias", "self_attn.o_proj.bias"
            found["o_bias"] = vector(*names, hidden, optional=True)
        if self.qk_norm != "none":
            widths = (self.head_dim, self.head_dim) if self.qk_norm == "head" else (q, kv)
            for key, width in zip("qk", widths, strict=True):
                found[f"{key}_norm"] = self._norm(f"attn_{key}_norm", f"self_attn.{key}_norm", width)
        if self.post_norm:
            found["attn_post_norm"] = self._norm("post_attention_norm", "post_attention_layernorm", hidden)
        return found

    def _norm(self, gguf: str, hf: str, width: int) -> TensorSpec:
        return vector(f"{gguf}.weight", f"{hf}.weight", width, hf_offset=self.norm_offset)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, rope and cache write, attention, output and residual."""
        biases = (w.get("q_bias"), w.get("k_bias"), w.get("v_bias"))
        q, k, v = ops.linear(x, (w["q"], w["k"], w["v"]), biases, w["attn_norm"], self.eps)
        norms = (w.get("q_norm"), w.get("k_norm"))
        if self.qk_norm == "width":
            q, k = ops.norm(q, w["q_norm"], self.eps), ops.norm(k, w["k_norm"], self.eps)
            norms = (None, None)
        ops.rope_store(layer, q, k, v, w.get("rope"), *norms, self.eps)
        scale = self.scale or self.head_dim**-0.5
        a = ops.attention(layer, q, scale, self.window, self.softcap)
        if self.post_norm:
            (a,) = ops.linear(a, (w["o"],), (None,))
            ops.add_norm(x, a, w["attn_post_norm"], self.eps)
        else:
            ops.linear_add(a, w["o"], x, w.get("o_bias"))
