"""The verbs of models/ops.py in torch, over a batch of rows: what a family's forward pass computes, differentiable.

Knows what each verb means for rows that begin at position 0; knows no family, no loss and no cache. A buffer is an
object that holds its current tensor, so that verbs in place stay safe for autograd. A verb that is missing here is
refused by its name.
Path: trainee.Trainee.states -> Network.forward(TorchOps, ...) -> head.Head
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.training.arithmetic import (
    Sight,
    activation,
    attend,
    gated,
    layer_norm,
    rms_norm,
    rotate,
    turns,
)
from freehold.adapt.training.batch import RowBatch
from freehold.adapt.training.head import Head
from freehold.adapt.training.lora import AdaptedMatrix
from freehold.errors import UnsupportedModel
from freehold.layers import LayerSpec
from freehold.models.config.rope import RopeTable

if TYPE_CHECKING:
    import torch

F32 = NDArray[np.float32]


class Activations:
    """Activations [rows of the batch, width] that verbs may replace."""

    __slots__ = ("value",)

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


class TorchOps:
    """ops.Ops executed at once. `name`: the model, for errors. Results: `rows` before the head, and the `head`."""

    def __init__(self, batch: RowBatch, layers: Sequence[LayerSpec], name: str, *, adapter: bool) -> None:
        self.rows: torch.Tensor | None = None
        self.head: Head | None = None
        self._batch, self._name, self._adapter = batch, name, adapter
        self._kv_heads = [spec.kv_heads for spec in layers]
        self._kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._turns: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __getattr__(self, verb: str) -> Any:
        raise UnsupportedModel(
            f"{self._name} is not trainable yet: its layers compute {verb}, which has no gradient here",
            "adapters train on dense models with attention",
        )

    # --- rows in, rows out -----------------------------------------------------------------------

    def embed(self, table: AdaptedMatrix, scale: float = 1.0, beyond: int = -1) -> Activations:
        tokens = self._batch.tokens
        known = np.where(tokens < table.packed.rows, tokens, beyond) if beyond >= 0 else tokens
        return Activations(table.packed.take(known) * scale)

    def norm(self, x: Activations, weight: F32, eps: float) -> Activations:
        return Activations(
            _by_head(x.value, len(weight), lambda heads: rms_norm(heads, _floats(weight), eps))
        )

    def layer_normed(
        self, x: Activations, weight: F32 | None, bias: F32 | None, eps: float, group: int = 0
    ) -> Activations:
        plain = _by_head(x.value, group or x.value.shape[1], partial(layer_norm, eps=eps))
        if weight is not None:
            plain = plain * _wide(weight, plain)
        return Activations(plain if bias is None else plain + _wide(bias, plain))

    def linear(
        self,
        x: Activations,
        weights: Sequence[AdaptedMatrix],
        biases: Sequence[F32 | None],
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> list[Activations]:
        n = _normed(x, norm, eps)
        return [Activations(self._affine(n, w, b)) for w, b in zip(weights, biases, strict=True)]

    def linear_act(
        self,
        x: Activations,
        weight: AdaptedMatrix,
        act: str,
        bias: F32 | None = None,
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> Activations:
        return Activations(activation(act)(self._affine(_normed(x, norm, eps), weight, bias)))

    def gated(
        self,
        x: Activations,
        gate: AdaptedMatrix,
        up: AdaptedMatrix,
        act: str,
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> Activations:
        g, u = self.linear(x, (gate, up), (None, None), norm, eps)
        return Activations(gated(act, g.value, u.value))

    def _affine(self, x: torch.Tensor, weight: AdaptedMatrix, bias: F32 | None) -> torch.Tensor:
        y = weight.product(x, adapter=self._adapter)
        return y if bias is None else y + _floats(bias)

    # --- attention -------------------------------------------------------------------------------

    def rope_store(
        self,
        layer: int,
        q: Activations,
        k: Activations,
        v: Activations,
        rope: RopeTable | None,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        eps: float = 0.0,
    ) -> None:
        heads = self._kv_heads[layer]
        width = k.value.shape[1] // heads
        q.value = self._prepared(q.value, width, rope, q_norm, eps)
        keys = self._prepared(k.value, width, rope, k_norm, eps)
        self._kv[layer] = keys.unflatten(1, (heads, -1)), v.value.unflatten(1, (heads, -1))

    def _prepared(
        self, x: torch.Tensor, width: int, rope: RopeTable | None, norm: F32 | None, eps: float
    ) -> torch.Tensor:
        heads = x.unflatten(1, (-1, width))
        if norm is not None:
            heads = rms_norm(heads, _floats(norm), eps)
        return self._rotated(heads, rope).flatten(1)

    def _rotated(self, heads: torch.Tensor, rope: RopeTable | None) -> torch.Tensor:
        if rope is None:
            return heads
        if id(rope) not in self._turns:
            self._turns[id(rope)] = turns(rope, self._batch.positions)
        return rotate(heads, self._turns[id(rope)], adjacent=rope.adjacent)

    def rotate(self, x: Activations, rope: RopeTable, width: int) -> None:
        x.value = _by_head(x.value, width, lambda heads: self._rotated(heads, rope))

    def attention(
        self,
        layer: int,
        q: Activations,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: F32 | None = None,
        chunk: int = 0,
    ) -> Activations:
        import torch

        k, v = self._kv[layer]
        heads = q.value.unflatten(1, (-1, k.shape[2]))
        sight, sink = Sight(scale, window, chunk, softcap), None if sinks is None else _floats(sinks)
        trees = [(tree, tree.span) for tree in self._batch.trees]
        each = [attend(heads[span], k[span], v[span], sight, sink, tree) for tree, span in trees]
        if not each:
            return Activations(q.value.new_zeros(0, heads.shape[1] * v.shape[2]))
        return Activations(torch.cat(each))

    def temper(self, x: Activations, beta: float, original: int, shift: int = 0) -> None:
        factor = 1 + beta * np.log1p((self._batch.positions + shift) // original)
        x.value = x.value * _floats(factor[:, None].astype(np.float32))

    # --- changes in place ------------------------------------------------------------------------

    def linear_add(
        self,
        x: Activations,
        weight: AdaptedMatrix,
        residual: Activations,
        bias: F32 | None = None,
        gate: Activations | None = None,
        scale: float = 1.0,
    ) -> None:
        y = self._affine(x.value, weight, bias)
        if gate is not None:
            y = gate.value.sigmoid() * y
        residual.value = residual.value.add(y, alpha=scale)

    def add_norm(self, residual: Activations, x: Activations, weight: F32, eps: float) -> None:
        residual.value = residual.value + rms_norm(x.value, _floats(weight), eps)

    def layer_norm(self, x: Activations, weight: F32, bias: F32, eps: float) -> None:
        x.value = self.layer_normed(x, weight, bias, eps).value

    def norm_gate(
        self, y: Activations, gate: Activations, weight: F32 | None, eps: float = 0.0, *, act: str
    ) -> None:
        normed = y.value
        if weight is not None:
            normed = _by_head(y.value, len(weight), lambda heads: rms_norm(heads, _floats(weight), eps))
        factor = gate.value.sigmoid() if act == "sigmoid" else activation(act)(gate.value)
        y.value = normed * factor

    def clamp(self, x: Activations, limit: float) -> None:
        x.value = x.value.clamp(-limit, limit)

    def scale(self, x: Activations, factor: float) -> None:
        x.value = x.value * factor

    # --- the end ---------------------------------------------------------------------------------

    def logits(
        self,
        x: Activations,
        weight: AdaptedMatrix,
        norm: F32 | None,
        eps: float = 0.0,
        scale: float = 1.0,
        softcap: float = 0.0,
        bias: F32 | None = None,
    ) -> None:
        import torch

        self.rows = _normed(x, norm, eps)[torch.from_numpy(self._batch.chosen)]
        self.head = Head(weight.packed, scale, softcap, None if bias is None else _floats(bias))


def _floats(values: F32) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


def _normed(x: Activations, norm: F32 | None, eps: float) -> torch.Tensor:
    return x.value if norm is None else rms_norm(x.value, _floats(norm), eps)


def _by_head(x: torch.Tensor, width: int, of: Any) -> torch.Tensor:
    """Apply `of` to parts of each row of this width, [rows, parts, width]."""
    return of(x.unflatten(1, (-1, width))).flatten(1)


def _wide(vector: F32, x: torch.Tensor) -> torch.Tensor:
    """Lay a vector as wide as a row, or as one group of it, over rows."""
    values = _floats(vector)
    return values.repeat(x.shape[1] // len(values)) if len(values) < x.shape[1] else values
