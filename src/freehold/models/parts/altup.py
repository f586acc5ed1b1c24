"""Layers over several residual streams, of which each computes one: AltUp, and a side path of low rank.

    a, X = predict(X),  n = norm(a)                       X: the streams, a: the active one
    b = (a + norm(attention(n)) + n + norm(R L n)) / sqrt(2)
    c = b + norm(mlp(norm b)),  first, X = correct(X, c)
    X_j += norm(up(gelu(gate first) * e_i)) for j >= 1    e_i: the layer's embedding of the token

Before the layers, stream 0 is the token's embedding, and the others are products of it, as large as it is; after them
the streams are brought to one size again, and their mean is what the head reads.
Sources: arXiv 2301.13310 (AltUp), 2411.07501 (the side path); transformers' Gemma3nTextModel, read 2026-11.
Path: families.gemma3n.layer -> AltUpLayer -> Network.forward
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from freehold.layers import LayerSpec
from freehold.models.config.rope import RopeSpec
from freehold.models.family import Cut, LayerPart, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.gemma4 import InputEnds, SharingAttention, input_tensors, layer_input
from freehold.models.parts.mlp import GatedMlp

LEAST = 1e-5  # of a stream's mean square, where it divides


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUpLayer(LayerPart):
    """One whole layer; its attention and its MLP add to the active stream."""

    kinds = SharingAttention.kinds

    attention: SharingAttention
    mlp: GatedMlp
    streams: int
    active: int  # the stream that is computed
    rank: int  # of the side path
    width: int  # of the layer's embedding of a token

    @property
    def hidden(self) -> int:
        """Width of a stream."""
        return self.attention.hidden

    @property
    def keeps(self) -> LayerSpec | None:
        """What its attention does."""
        return self.attention.keeps

    @property
    def rope(self) -> RopeSpec | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of its attention."""
        return self.attention.rope

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare attention, MLP, side path, and what mixes streams: small matrices, which an op takes as floats."""
        n, hidden = self.streams, self.hidden
        own = {
            "router": _flat("altup_router.weight", "altup.modality_router.weight", n, hidden),
            "predict": _flat("altup_predict_coef.weight", "altup.prediction_coefs.weight", n * n, n),
            "correct": _flat("altup_correct_coef.weight", "altup.correction_coefs.weight", n, n),
            "router_norm": vector("altup_router_norm.weight", "altup.router_norm.weight", hidden),
            "correct_scale": vector("altup_correct_scale.weight", "altup.correct_output_scale", hidden),
            "left": matrix("laurel_l.weight", "laurel.linear_left.weight", self.rank, hidden),
            "right": matrix("laurel_r.weight", "laurel.linear_right.weight", hidden, self.rank),
            "side_norm": vector("laurel_post_norm.weight", "laurel.post_laurel_norm.weight", hidden),
        }
        return self.attention.tensors() | self.mlp.tensors() | own | input_tensors(hidden, self.width)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose prediction, attention beside the side path, MLP, correction, and the layer's embedding."""
        eps = self.attention.eps
        norm = np.asarray(w["router_norm"] / np.float32(self.hidden), np.float32)
        predicted = ops.predict(x, w["router"], norm, w["predict"], self.active, eps)
        n = ops.norm(predicted, w["attn_norm"], eps)
        self.attention.add(ops, layer, (n, None), predicted, w)
        self._side(ops, n, w)
        ops.add(predicted, n)
        ops.scale(predicted, 0.5**0.5)
        self.mlp.forward(ops, layer, predicted, w)
        first = ops.correct(
            x, predicted, w["router"], norm, w["correct"], w["correct_scale"], self.active, eps
        )
        h = layer_input(ops, layer, first, w, self.width)
        ops.add(x, ops.norm(h, w["input_norm"], eps), self.hidden)

    def _side(self, ops: Ops, n: Buffer, w: Values) -> None:
        (low,) = ops.linear(n, (w["left"],), (None,))
        (side,) = ops.linear(low, (w["right"],), (None,))
        ops.add_norm(n, side, w["side_norm"], self.attention.eps)


def _flat(gguf: str, hf: str, rows: int, columns: int) -> TensorSpec:
    stored = [Cut(name, (rows, columns), take=np.ravel, decode=True) for name in (gguf, hf)]
    return vector(stored[0], stored[1], rows * columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUpEnds(InputEnds):
    """Ends of several streams, with an embedding of each token for each layer."""

    streams: int

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a matrix for each stream but the first, before the layers and after them."""
        return InputEnds.tensors(self) | {
            "spread": self._stack("altup_proj.weight", "model.altup_projections"),
            "merge": self._stack("altup_unembd_proj.weight", "model.altup_unembed_projections"),
        }

    def _stack(self, gguf: str, hf: str) -> TensorSpec:
        others, hidden = self.streams - 1, self.hidden
        rows = range(others * hidden)
        stored = Cut(gguf, (others, hidden, hidden), rows=rows)
        apart = tuple(f"{hf}.{i}.weight" for i in range(others))
        joined = Cut(apart, (others * hidden, hidden), rows=rows)
        return matrix(stored, joined, others * hidden, hidden, adaptable=False)

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Look the step's tokens up and make the other streams of them."""
        x = DecoderEnds.begin(self, ops, w)
        (others,) = ops.linear(x, (w["spread"],), (None,))
        return ops.spread(x, others, LEAST)

    def beside(self, ops: Ops, x: Buffer, w: Values) -> Mapping[str, Buffer]:
        """Return all layers' embeddings of the tokens, to which the first stream gives its part."""
        return InputEnds.beside(self, ops, ops.part(x, 0, self.hidden), w)

    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Compute logits of the mean of all streams."""
        others = self.streams - 1
        rest = ops.part(x, self.hidden, others * self.hidden)
        DecoderEnds.finish(self, ops, ops.merge(x, ops.linear_heads(rest, w["merge"], others), LEAST), w)
