"""What the oracle holds: decoded weight matrices, and the keys and values of a sequence.

Knows rows of weights and pages of layers; knows no op and no model.
Path: oracle.Oracle -> assemble -> DenseMatrix; oracle.Session -> KvStore
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from freehold.formats import dequantize
from freehold.models.binding.stored import Stored

F32 = NDArray[np.float32]


class DenseMatrix:
    """A weight matrix decoded to float32: once, or anew at each use to save memory."""

    def __init__(self, tensor: Stored, keep: bool) -> None:
        self._tensor = tensor
        self._dense = self._decoded() if keep else None

    def dense(self) -> F32:
        """Return the weights, float32 [rows, columns]; experts lie one below another."""
        return self._decoded() if self._dense is None else self._dense

    def times(self, x: F32) -> F32:
        """Multiply rows [T, columns]: float32 [T, rows]."""
        return x @ self.dense().T

    def _decoded(self) -> F32:
        return self._tensor.numpy().reshape(-1, self._tensor.shape[-1])

    @property
    def columns(self) -> int:
        """Width of a row."""
        return self._tensor.shape[-1]

    @property
    def height(self) -> int:
        """Number of rows, of all experts together."""
        return math.prod(self._tensor.shape[:-1])

    def expert(self, number: int, rows: int) -> F32:
        """Return one expert's matrix of this many rows."""
        return self.take(np.arange(number * rows, (number + 1) * rows))

    def take(self, rows: NDArray[np.integer]) -> F32:
        """Return some rows, decoding no others."""
        if self._dense is not None:
            return self._dense[rows]
        held = self._tensor
        return dequantize(held.rows[rows], held.type, held.shape[-1], held.table)


class KvStore:
    """Keys and values of one sequence, every layer: float32 [positions, heads, width]; and states by layer and name."""

    def __init__(self, layers: int, f16: bool) -> None:
        self.length = 0
        self._f16 = f16
        self._pages: list[tuple[F32, F32] | None] = [None] * layers
        self.states: dict[tuple[int, str], F32] = {}  # zeros where there is none yet

    def append(self, layer: int, k: F32, v: F32) -> None:
        """Add the rows of one step, rounded to f16 if the store is meant to hold that."""
        if self._f16:
            k, v = (a.astype(np.float16).astype(np.float32) for a in (k, v))
        old = self._pages[layer]
        self._pages[layer] = (
            (k, v) if old is None else (np.concatenate([old[0], k]), np.concatenate([old[1], v]))
        )

    def read(self, layer: int) -> tuple[F32, F32]:
        """Return a layer's keys and values so far."""
        pages = self._pages[layer]
        assert pages is not None, "a layer reads its cache after rope_store"
        return pages
