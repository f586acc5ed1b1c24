"""Attention and an MLP, or experts, that read the same rows and are added together.

    x += attention(n) + mlp(m),  n = m = layer_norm(x), or two layer norms of x

The first form is GPT-J's and Cohere's, the second GPT-NeoX's.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.base.layers import LayerSpec
from freehold.run.models.config.rope import RopeSpec
from freehold.run.models.family import Buffer, LayerPart, Ops, TensorSpec, Values
from freehold.run.models.parts.attention import Attention
from freehold.run.models.parts.mlp import GatedMlp, PlainMlp
from freehold.run.models.parts.moe import Moe


@dataclass(frozen=True, slots=True)
class ParallelBlock(LayerPart):
    """Attention with a layer norm, and an MLP that reads the same rows, or without a norm those of attention."""

    kinds = Attention.kinds

    attention: Attention
    mlp: GatedMlp | PlainMlp | Moe

    def __post_init__(self) -> None:
        # An RMS norm is fused into products otherwise, and the MLP's would read x after attention was added.
        own = self.attention.norm
        assert own.kind == "layer" or own.apart, "a parallel block's norm has rows of its own"
        assert self.mlp.norm.kind in ("layer", "none"), "so has its MLP's, if there is one"

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
        """Normalise, then add both."""
        own, eps = self.attention, self.attention.eps
        read = own.norm.before(ops, x, w, "attn_norm", eps)
        beside = read if self.mlp.norm.kind == "none" else self.mlp.norm.before(ops, x, w, "ffn_norm", eps)
        own.add(ops, layer, read, x, w)
        self.mlp.add(ops, beside, x, w)
