"""The gated MLP.

    x += down(act(gate n) * up n),  n = norm(x)

Source: arXiv 2002.05202 (GLU variants).
Path: families.<family>.layer -> GatedMlp -> Network.forward
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.models.family import LayerPart, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops
from freehold.models.sizes import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMlp(LayerPart):
    """One layer's MLP; `sandwich`: a norm after it too, and Gemma's names of both."""

    hidden: int
    intermediate: int
    eps: float
    act: str = "silu"
    sandwich: bool = False
    norm_offset: float = 0.0  # of norms in safetensors

    @classmethod
    def of(cls, cfg: Sizes, layer: int, **options: Any) -> GatedMlp:
        """Take the sizes of a layer out of a config."""
        return cls(hidden=cfg.hidden, intermediate=cfg.intermediate[layer], eps=cfg.eps, **options)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare three matrices and the norm before them, or those on both sides."""
        wide, hidden, offset = self.intermediate, self.hidden, self.norm_offset
        before = "pre_feedforward_layernorm" if self.sandwich else "post_attention_layernorm"
        found = {
            "ffn_norm": vector("ffn_norm.weight", f"{before}.weight", hidden, hf_offset=offset),
            "gate": matrix("ffn_gate.weight", "mlp.gate_proj.weight", wide, hidden),
            "up": matrix("ffn_up.weight", "mlp.up_proj.weight", wide, hidden),
            "down": matrix("ffn_down.weight", "mlp.down_proj.weight", hidden, wide),
        }
        if self.sandwich:
            names = "post_ffw_norm.weight", "post_feedforward_layernorm.weight"
            found["ffn_post_norm"] = vector(*names, hidden, hf_offset=offset)
        return found

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, gate, up, down and residual."""
        h = ops.gated(x, w["gate"], w["up"], self.act, w["ffn_norm"], self.eps)
        if self.sandwich:
            (h,) = ops.linear(h, (w["down"],), (None,))
            ops.add_norm(x, h, w["ffn_post_norm"], self.eps)
        else:
            ops.linear_add(h, w["down"], x)
