"""The MLP, with a gate or without.

    x += down(act(gate n) * up n)    or    x += down(act(up n)),  n = norm(x)

Gates may be cut to those that lie some deviations above their mean, the others count as 0; or limited once activated.
Source: arXiv 2002.05202 (GLU variants).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.run.models.config.sizes import Sizes
from freehold.run.models.family import Buffer, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.norms import RMS, NormForm, Read


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedMlp(LayerPart):
    """One layer's MLP."""

    hidden: int
    intermediate: int
    eps: float
    act: str = "silu"
    norm: NormForm = RMS  # before the products
    norm_name: str = "post_attention_layernorm"  # in safetensors
    gguf_norm: str = "ffn_norm"
    hf: str = "mlp"  # prefix of the matrices' names in safetensors
    post_norm: str = ""  # safetensors' name of a norm after the output; empty: there is none
    post_eps: float = 0.0  # of that norm; 0: eps
    residual: float = 1.0  # of what is added to x
    fused: bool = False  # files hold gate and up as one matrix, gate first
    limit: float = 0.0  # of the activated gate, and of up on either side; 0: none
    above: float | None = None  # deviations above their mean that count as a gate of 0; None: no gate is cut

    @classmethod
    def of(cls, cfg: Sizes, layer: int, **options: Any) -> GatedMlp:
        """Take the sizes of a layer out of a config."""
        return cls(hidden=cfg.hidden, intermediate=cfg.intermediate[layer], eps=cfg.eps, **options)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare three matrices and the norms that the variant has."""
        wide, hidden = self.intermediate, self.hidden
        specs = self.norm.tensors("ffn_norm", self.gguf_norm, self.norm_name, hidden)
        specs |= {
            "gate": self._half("ffn_gate.weight", f"{self.hf}.gate_proj.weight", 0),
            "up": self._half("ffn_up.weight", f"{self.hf}.up_proj.weight", wide),
            "down": matrix("ffn_down.weight", f"{self.hf}.down_proj.weight", hidden, wide),
        }
        if self.post_norm:
            names = "post_ffw_norm.weight", f"{self.post_norm}.weight"
            specs["ffn_post_norm"] = vector(*names, hidden, hf_offset=self.norm.offset)
        return specs

    def _half(self, gguf: str, hf: str, first: int) -> TensorSpec:
        wide, hidden = self.intermediate, self.hidden
        if not self.fused:
            return matrix(gguf, hf, wide, hidden)
        rows = range(first, first + wide)
        return TensorSpec.of_rows("ffn_up.weight", f"{self.hf}.gate_up_proj.weight", (2 * wide, hidden), rows)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, gate, up, down and residual."""
        self.add(ops, self.norm.before(ops, x, w, "ffn_norm", self.eps), x, w)

    def add(self, ops: Ops, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm."""
        rows, norm = read
        if self.above is None:
            h = ops.gated(rows, w["gate"], w["up"], self.act, norm, self.eps, self.limit)
        else:
            h, up = ops.linear(rows, (w["gate"], w["up"]), (None, None), norm, self.eps)
            ops.gaussian_gate(h, up, self.above)
        if self.post_norm:
            (h,) = ops.linear(h, (w["down"],), (None,))
            ops.add_norm(x, h, w["ffn_post_norm"], self.post_eps or self.eps)
        else:
            ops.linear_add(h, w["down"], x, scale=self.residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMlp(LayerPart):
    """One layer's MLP without a gate."""

    hidden: int
    intermediate: int
    eps: float
    act: str  # gelu, gelu_erf or relu2
    bias: bool = False
    norm: NormForm = RMS
    norm_name: str = "post_attention_layernorm"  # in safetensors, as are the two below
    up_name: str = "mlp.up_proj"
    down_name: str = "mlp.down_proj"

    @classmethod
    def of(cls, cfg: Sizes, layer: int, **options: Any) -> PlainMlp:
        """Take the sizes of a layer out of a config."""
        return cls(hidden=cfg.hidden, intermediate=cfg.intermediate[layer], eps=cfg.eps, **options)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices, their biases and the norm before them."""
        wide, hidden = self.intermediate, self.hidden
        specs = self.norm.tensors("ffn_norm", "ffn_norm", self.norm_name, hidden)
        for key, name, rows, columns in (
            ("up", self.up_name, wide, hidden),
            ("down", self.down_name, hidden, wide),
        ):
            specs[key] = matrix(f"ffn_{key}.weight", f"{name}.weight", rows, columns)
            if self.bias:
                specs[f"{key}_bias"] = vector(f"ffn_{key}.bias", f"{name}.bias", rows)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, up, activation, down and residual."""
        self.add(ops, self.norm.before(ops, x, w, "ffn_norm", self.eps), x, w)

    def add(self, ops: Ops, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm."""
        rows, norm = read
        h = ops.linear_act(rows, w["up"], self.act, w.get("up_bias"), norm, self.eps)
        ops.linear_add(h, w["down"], x, w.get("down_bias"))
