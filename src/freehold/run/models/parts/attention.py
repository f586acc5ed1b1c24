"""Grouped-query attention with rotary positions, over all tokens or a sliding window.

    x += o(attention(rope(q n), rope(k n), v n)),  n = norm(x)

Variants are fields: biases, a norm on queries and keys, a norm after the output, a soft cap on scores, clipped
projections, a temperature on far queries, a factor on what is added to x.
Sources: arXiv 2305.13245 (grouped queries), 2104.09864 (rotary positions).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from freehold.base.layers import LayerSpec
from freehold.run.models.config.rope import RopeSpec
from freehold.run.models.config.sizes import Sizes
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.norms import RMS, NormForm, Read

QkNorm = Literal[
    "none",
    "head",  # an RMS norm of each head, before it turns
    "after",  # the same after it turned
    "width",  # an RMS norm over the whole projection
    "layer",  # a layer norm of each head, with weights of its own
    "bare",  # an RMS norm of each head without weights, after it turned
]


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
    chunk: int = 0  # tokens see those of their own chunk alone; 0: there are none
    sinks: bool = False  # whether a logit of each head joins the softmax's sum
    scale: float = 0.0  # of query times key; 0: head_dim ** -0.5
    softcap: float = 0.0
    bias: Literal["none", "qkv", "any", "all"] = "none"  # any: on all four, where the file has them
    norm: NormForm = RMS  # before the projections
    qk_norm: QkNorm = "none"
    qk_names: tuple[str, str] = ("q_norm", "k_norm")  # of its weights in safetensors
    qk_maybe: bool = False  # whether a file may have none
    post_norm: str = ""  # safetensors' name of a norm after the output; empty: there is none
    clip: float = 0.0  # limit of what the projections give; 0: none
    beta: float = 0.0  # queries grow by 1 + beta * ln(1 + floor(position / original))
    original: int = 0
    shift: int = 0  # joins the position there
    residual: float = 1.0  # of what is added to x
    fused: bool = False  # files hold q, k and v as one matrix
    both: bool = False  # rows of a picture see each other
    post_eps: float = 0.0  # of that norm; 0: eps
    gated: bool = False  # what it gives passes a sigmoid of its own; files hold a head's query, then its gate
    gate: str = ""  # safetensors' name of that gate where it is a matrix of its own
    gate_heads: bool = False  # it has one number for each head, which multiplies all of the head
    gate_act: Literal["sigmoid", "softplus"] = "sigmoid"
    value_dim: int = 0  # width of a head's values; 0: head_dim
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
        reach = self.window or self.chunk
        kind = "window" if reach else "full"
        return LayerSpec(kind, 1, self.kv_heads, self.head_dim, self.value_dim or None, window=reach)

    @property
    def q_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads."""
        return self.kv_heads * self.head_dim

    @property
    def value_width(self) -> int:
        """Width of all value heads."""
        return self.kv_heads * (self.value_dim or self.head_dim)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, and the norms and biases that the variant has."""
        own = self.norm.tensors("attn_norm", "attn_norm", "input_layernorm", self.hidden)
        if self.sinks:
            own["sinks"] = vector("attn_sinks.weight", "self_attn.sinks", self.heads)
        specs = own | self._projections() | self._biases() | self._qk_norms()
        if self.post_norm:
            names = "post_attention_norm.weight", f"{self.post_norm}.weight"
            specs["attn_post_norm"] = vector(*names, self.hidden, hf_offset=self.norm.offset)
        return specs

    def _projections(self) -> dict[str, TensorSpec]:
        q, kv, v, hidden = self.q_width, self.kv_width, self.value_width, self.hidden
        turns = {"head": self.head_dim} if self.gguf_pairs else {}
        attended = self.heads * (self.value_dim or self.head_dim)
        o = matrix("attn_output.weight", "self_attn.o_proj.weight", hidden, attended)
        if self.fused:
            parts = {"q": range(q), "k": range(q, q + kv), "v": range(q + kv, q + kv + v)}
            names, whole = ("attn_qkv.weight", "self_attn.qkv_proj.weight"), (q + kv + v, hidden)
            return {key: TensorSpec.of_rows(*names, whole, rows) for key, rows in parts.items()} | {"o": o}
        queries = {"q": matrix("attn_q.weight", "self_attn.q_proj.weight", q, hidden, **turns)}
        if self.gate:
            rows = self.heads if self.gate_heads else q
            queries["q_gate"] = matrix("attn_gate.weight", f"self_attn.{self.gate}.weight", rows, hidden)
        return (self._gated() if self.gated else queries) | {
            "k": matrix("attn_k.weight", "self_attn.k_proj.weight", kv, hidden, **turns),
            "v": matrix("attn_v.weight", "self_attn.v_proj.weight", v, hidden),
            "o": o,
        }

    def _gated(self) -> dict[str, TensorSpec]:
        names, whole = ("attn_q.weight", "self_attn.q_proj.weight"), (2 * self.q_width, self.hidden)
        pairs = np.arange(2 * self.q_width).reshape(self.heads, 2, -1)
        return {
            key: TensorSpec.of_rows(*names, whole, pairs[:, i].ravel())
            for i, key in enumerate(("q", "q_gate"))
        }

    def _biases(self) -> dict[str, TensorSpec]:
        specs, maybe = {}, self.bias == "any"
        widths = {"q": self.q_width, "k": self.kv_width, "v": self.value_width}
        for key, width in widths.items() if self.bias != "none" else ():
            names = f"attn_{key}.bias", f"self_attn.{key}_proj.bias"
            specs[f"{key}_bias"] = vector(*names, width, optional=maybe)
        if self.bias in ("any", "all"):
            names = "attn_output.bias", "self_attn.o_proj.bias"
            specs["o_bias"] = vector(*names, self.hidden, optional=maybe)
        return specs

    def _qk_norms(self) -> dict[str, TensorSpec]:
        specs = {}
        both = zip("qk", (self.heads, self.kv_heads), self.qk_names, strict=True)
        for key, heads, name in both if self.qk_norm not in ("none", "bare") else ():
            gguf, hf = f"attn_{key}_norm.weight", f"self_attn.{name}.weight"
            width = heads * self.head_dim
            maybe = {"optional": self.qk_maybe, "beside": "k_norm" if key == "q" else "q_norm"}
            if self.qk_norm == "layer":
                stored = [Cut(name, (heads, self.head_dim), take=np.ravel) for name in (gguf, hf)]
                specs[f"{key}_norm"] = vector(stored[0], stored[1], width, **maybe)
            else:
                width = width if self.qk_norm == "width" else self.head_dim
                specs[f"{key}_norm"] = vector(gguf, hf, width, hf_offset=self.norm.offset, **maybe)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, rope and cache write, attention, output and residual."""
        self.add(ops, layer, self.norm.before(ops, x, w, "attn_norm", self.eps), x, w)

    def add(self, ops: Ops, layer: int, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm: a parallel block's MLP reads the same rows."""
        rows, norm = read
        biases = (w.get("q_bias"), w.get("k_bias"), w.get("v_bias"))
        gate = (w["q_gate"],) if self.gated or self.gate else ()
        q, k, v, *gate = ops.linear(
            rows, (w["q"], w["k"], w["v"], *gate), (*biases, *(None for _ in gate)), norm, self.eps
        )
        q, k = self._normalised(ops, q, k, w)
        for each in (q, k, v) if self.clip else ():
            ops.clamp(each, self.clip)
        self._store(ops, layer, q, k, v, w)
        if self.beta:
            ops.temper(q, self.beta, self.original, self.shift)
        scale, seen = self.scale or self.head_dim**-0.5, (self.window, self.softcap)
        a = ops.attention(layer, q, scale, *seen, w.get("sinks"), self.chunk, self.both)
        if gate and (self.gate_heads or self.gate_act == "softplus"):
            ops.gate_heads(a, gate[0], act=self.gate_act)
        elif gate:
            ops.norm_gate(a, gate[0], None, act="sigmoid")
        if self.post_norm:
            (a,) = ops.linear(a, (w["o"],), (w.get("o_bias"),))
            ops.add_norm(x, a, w["attn_post_norm"], self.post_eps or self.eps)
        else:
            ops.linear_add(a, w["o"], x, w.get("o_bias"), scale=self.residual)

    def _normalised(self, ops: Ops, q: Buffer, k: Buffer, w: Values) -> tuple[Buffer, Buffer]:
        if self.qk_norm == "width":
            return ops.norm(q, w["q_norm"], self.eps), ops.norm(k, w["k_norm"], self.eps)
        if self.qk_norm == "layer" and "q_norm" in w:
            width = self.head_dim
            q = ops.layer_normed(q, w["q_norm"], None, self.eps, width)
            return q, ops.layer_normed(k, w["k_norm"], None, self.eps, width)
        return q, k

    def _store(self, ops: Ops, layer: int, q: Buffer, k: Buffer, v: Buffer, w: Values) -> None:
        rope, norms = w.get("rope"), (None, None)
        if self.qk_norm in ("head", "after"):
            norms = w.get("q_norm"), w.get("k_norm")
        if self.qk_norm == "bare":
            one = np.ones(self.head_dim, np.float32)
            norms = one, one
        if self.qk_norm in ("after", "bare") and rope is not None:
            ops.rotate(q, rope, self.head_dim)
            ops.rotate(k, rope, self.head_dim)
            rope = None
        ops.rope_store(layer, q, k, v, rope, *norms, self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApartOrFused(Attention):
    """Attention whose q, k and v are three matrices in some GGUFs, and rows of one in others."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both places of each weight and bias."""
        specs = super(ApartOrFused, self).tensors()
        q, kv = self.q_width, self.kv_width
        rows = {"q": range(q), "k": range(q, q + kv), "v": range(q + kv, q + 2 * kv)}
        for key, own in rows.items():
            weight = Cut("attn_qkv.weight", (q + 2 * kv, self.hidden), rows=own)
            bias = Cut("attn_qkv.bias", (q + 2 * kv,), rows=own)
            for name, stored in ((key, weight), (f"{key}_bias", bias)):
                specs[name] = replace(specs[name], gguf=(*specs[name].gguf, stored))
        return specs
