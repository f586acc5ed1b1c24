"""A gated short convolution, where other models have attention.

    x += o(c * conv(b * u)),  b, c, u = in_proj(norm(x))

conv sums the last few inputs of each channel, weighted; a sequence's state is all but the newest of them.
Source: LFM2's technical report, arXiv 2511.23404, section 2.
Path: families.<family>.layer -> ShortConv -> Network.forward
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freehold.layers import LayerSpec
from freehold.models.family import Cut, LayerPart, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv(LayerPart):
    """One layer's convolution."""

    kinds = frozenset({"shortconv"})

    hidden: int
    taps: int
    eps: float

    @property
    def keeps(self) -> LayerSpec:
        """The inputs that the next token needs."""
        return LayerSpec("shortconv", conv=(self.taps - 1) * self.hidden)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the first of which files hold as one, and a row of weights for each channel."""
        size = (self.hidden, self.hidden)
        specs = {"conv_norm": vector("attn_norm.weight", "operator_norm.weight", self.hidden)}
        for i, key in enumerate(("gate_in", "gate_out", "u")):
            gguf, hf = (self._third(i, name) for name in ("shortconv.in_proj.weight", "conv.in_proj.weight"))
            specs[key] = matrix(gguf, hf, *size)
        return specs | {
            "conv": vector(
                Cut("shortconv.conv.weight", (self.hidden, self.taps), take=np.ravel),
                Cut("conv.conv.weight", (self.hidden, 1, self.taps), take=np.ravel),
                self.hidden * self.taps,
            ),
            "out": matrix("shortconv.out_proj.weight", "conv.out_proj.weight", *size),
        }

    def _third(self, number: int, name: str) -> Cut:
        rows = range(number * self.hidden, (number + 1) * self.hidden)
        return Cut(name, (3 * self.hidden, self.hidden), rows=rows)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, gates and convolution, output and residual."""
        projections = (w["gate_in"], w["gate_out"], w["u"])
        b, c, u = ops.linear(x, projections, (None,) * 3, w["conv_norm"], self.eps)
        ops.linear_add(ops.short_conv(layer, u, w["conv"], gate_in=b, gate_out=c), w["out"], x)
