"""The verbs a forward pass is written in, and the opaque things they act on.

Knows what each verb takes and gives; knows no arithmetic (native.Plan records the verbs, oracle.NumpyOps runs them)
and no architecture.
Path: parts.<part>.forward -> Ops -> native.Plan
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Matrix: TypeAlias = Any  # whatever the ops multiply with: native.Matrix, or the oracle's
Rope: TypeAlias = Any  # likewise: native.Rope, or a RopeTable
Buffer: TypeAlias = Any  # activations [rows of the step, width], opaque to a part
Routes: TypeAlias = Any  # each row's chosen experts and their weights


class Ops(Protocol):
    """What a part's `forward` may call."""

    def embed(self, table: Matrix, scale: float = 1.0) -> Buffer: ...
    def norm(self, x: Buffer, weight: F32, eps: float) -> Buffer: ...
    def linear(
        self,
        x: Buffer,
        weights: Sequence[Matrix],
        biases: Sequence[F32 | None],
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> list[Any]: ...
    def linear_add(
        self, x: Buffer, weight: Matrix, residual: Buffer, bias: F32 | None = None, gate: Buffer | None = None
    ) -> None: ...
    def gated(
        self, x: Buffer, gate: Matrix, up: Matrix, act: str, norm: F32 | None = None, eps: float = 0.0
    ) -> Buffer: ...
    def rope_store(
        self,
        layer: int,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        rope: Rope | None,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        eps: float = 0.0,
    ) -> None: ...
    def attention(
        self, layer: int, q: Buffer, scale: float, window: int = 0, softcap: float = 0.0
    ) -> Buffer: ...
    def add_norm(self, residual: Buffer, x: Buffer, weight: F32, eps: float) -> None: ...
    def logits(
        self,
        x: Buffer,
        weight: Matrix,
        norm: F32 | None,
        eps: float,
        scale: float = 1.0,
        softcap: float = 0.0,
    ) -> None: ...

    # A mixture of experts: `route` chooses, `experts` adds what the chosen compute.
    def route(
        self, x: Buffer, router: Matrix, top_k: int, *, norm: F32 | None, eps: float, renormalise: bool
    ) -> Routes: ...
    def experts(
        self,
        x: Buffer,
        routes: Routes,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        residual: Buffer,
        *,
        act: str,
        norm: F32 | None,
        eps: float,
    ) -> None: ...

    # An encoder's: rows of a text see each other, and nothing is kept for another step.
    def embed_sum(self, words: Matrix, positions: Matrix, kinds: Matrix) -> Buffer: ...
    def layer_norm(self, x: Buffer, weight: F32, bias: F32, eps: float) -> None: ...
    def linear_gelu(self, x: Buffer, weight: Matrix, bias: F32 | None = None) -> Buffer: ...
    def attend_both(self, q: Buffer, k: Buffer, v: Buffer, heads: int, scale: float) -> Buffer: ...
    def hidden(self, x: Buffer) -> None: ...
