"""A block whose attention and MLP read the same norm of x.

    x += attention(n) + mlp(n),  n = norm(x)

Source: Cohere's Command R, after GPT-J.
Path: families.<family>.layer -> ParallelBlock -> Network.forward
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.layers import LayerSpec
from freehold.models.config.rope import RopeSpec
from freehold.models.family import LayerPart, TensorSpec, Values
from freehold.models.ops import Buffer, Ops
from freehold.models.parts.attention import Attention
from freehold.models.parts.mlp import GatedMlp


@dataclass(frozen=True, slots=True)
class ParallelBlock(LayerPart):
    """Attention with the block's layer norm, and an MLP without one."""

    kinds = Attention.kinds

    attention: Attention
    mlp: GatedMlp

    def __post_init__(self) -> None:
        # An RMS norm is fused into products, and the MLP's would read x after attention was added.
        assert self.attention.norm.kind == "layer", "a parallel block's norm has rows of its own"
        assert self.mlp.norm.kind == "none", "a parallel block has one norm"

    @property
    def rope(self) -> RopeSpec | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Attention's."""
        return self.attention.rope

    @property
    def keeps(self) -> LayerSpec:
        """What attention keeps."""
        return self.attention.keeps

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the weights of both."""
        return self.attention.tensors() | self.mlp.tensors()

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Normalise once, then add both."""
        read = self.attention.norm.before(ops, x, w, "attn_norm", self.attention.eps)
        self.attention.add(ops, layer, read, x, w)
        self.mlp.add(ops, read, x, w)
