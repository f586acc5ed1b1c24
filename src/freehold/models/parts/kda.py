"""Kimi Delta Attention: gated DeltaNet whose decay has a value for each key, from a projection of low rank.

    q, k, v = silu(conv(Wq n)), silu(conv(Wk n)), silu(conv(Wv n)),  n = norm(x)
    g = exp(a * softplus(Fb Fa n + dt)),  b = sigmoid(beta n)
    S = g S,  d = b (v - S' k),  S = S + k d',  s = S' q;  x += o(norm(s) * sigmoid(Gb Ga n))

q and k as DeltaNet has them; `a` is a head's, g and dt are a key's. Key heads and value heads are alike.
Source: arXiv 2510.26692 (Kimi Linear).
Path: families.<family>.layer -> DeltaAttention -> Network.forward
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freehold.layers import LayerSpec
from freehold.models.family import Cut, LayerPart, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops
from freehold.models.parts.deltanet import DeltaSizes, convolved


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaAttention(LayerPart):
    """One layer's mixer."""

    kinds = frozenset({"linear"})

    hidden: int
    sizes: DeltaSizes
    eps: float

    @property
    def keeps(self) -> LayerSpec:
        """A state, and the last inputs of the three convolutions."""
        return self.sizes.spec("linear")

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the convolutions, what each head has, and the norms."""
        s, hidden = self.sizes, self.hidden
        specs = {
            "attn_norm": vector("attn_norm.weight", "input_layernorm.weight", hidden),
            "a": vector(
                Cut("ssm_a", (s.key_heads,), take=np.ravel),
                Cut("self_attn.A_log", (s.key_heads,), take=lambda log: -np.exp(log).ravel()),
                s.key_heads,
            ),
            "dt": vector("ssm_dt.bias", "self_attn.dt_bias", s.keys),
            "head_norm": vector("ssm_norm.weight", "self_attn.o_norm.weight", s.value_dim),
            "beta": matrix("ssm_beta.weight", "self_attn.b_proj.weight", s.key_heads, hidden),
            "out": matrix("attn_output.weight", "self_attn.o_proj.weight", hidden, s.values),
        }
        for key in "qkv":
            specs[key] = matrix(f"attn_{key}.weight", f"self_attn.{key}_proj.weight", s.keys, hidden)
            names = f"ssm_conv1d_{key}.weight", f"self_attn.{key}_conv1d.weight"
            gguf, hf = (Cut(name, (s.keys, s.kernel), take=np.ravel) for name in names)
            specs[f"conv_{key}"] = vector(gguf, hf, s.keys * s.kernel)
        for key in "fg":
            for half, shape in (("a", (s.key_dim, hidden)), ("b", (s.keys, s.key_dim))):
                names = f"ssm_{key}_{half}.weight", f"self_attn.{key}_{half}_proj.weight"
                specs[f"{key}_{half}"] = matrix(*names, *shape)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, convolutions, recurrence, gated norm, output and residual."""
        s = self.sizes
        read = tuple(w[key] for key in ("q", "k", "v", "f_a", "g_a", "beta"))
        *qkv, forget, gate, beta = ops.linear(x, read, (None,) * 6, w["attn_norm"], self.eps)
        (decay,) = ops.linear(forget, (w["f_b"],), (None,))
        (gate,) = ops.linear(gate, (w["g_b"],), (None,))
        qkv = convolved(ops, layer, qkv, [w[f"conv_{key}"] for key in "qkv"], s.kernel)
        y = ops.gated_delta(layer, qkv, decay, beta, w["a"], w["dt"], key_heads=s.key_heads, keys=s.key_dim)
        ops.norm_gate(y, gate, w["head_norm"], self.eps, act="sigmoid")
        ops.linear_add(y, w["out"], x)
