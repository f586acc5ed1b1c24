"""Encodes a float matrix as T2 or T3: the table, the bytes of all rows, and what they stand for.

Knows one matrix and the second moments of its inputs; knows no model and no file. The same arguments give the
same bytes, for
any number of threads.
Path: adapt.quantize -> encode -> native.trellis_encode
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.quantize.feedback import Feedback, feedback
from freehold.adapt.quantize.tables import TABLES, TrellisTable

F32 = NDArray[np.float32]

BLOCK, AHEAD, SPREAD = (
    8,
    24,
    2,
)  # columns committed at once, in view beyond them, and scales tried on each side
DAMPING = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class TrellisTensor:
    """An encoded matrix: `rows` uint8 [N, row bytes] after a table int8 [128]; `values` float32 [N, K] is
    what it stands for.
    """

    bits: int
    table: NDArray[np.int8]
    rows: NDArray[np.uint8]
    values: F32

    @property
    def type(self) -> str:
        """The name of its GGUF type."""
        return f"T{self.bits}"

    @property
    def raw(self) -> NDArray[np.uint8]:
        """The tensor as a file has it, flat."""
        return np.concatenate([self.table.view(np.uint8), self.rows.reshape(-1)])


def encode(
    weights: F32,
    moments: Sequence[F32] | None,
    bits: int,
    threads: native.Threads,
    *,
    damping: float = DAMPING,
    table: TrellisTable | None = None,
) -> TrellisTensor:
    """Encode float32 [N, K] with `bits` (2 or 3) a weight.

    `moments` are second moments of its inputs, in blocks along the diagonal of one width (the last may be
    narrower); None:
    all inputs count alike.
    """
    table = table or TABLES[bits]
    weights = np.ascontiguousarray(weights, np.float32)
    fed = _plain(weights.shape[1]) if moments is None else feedback(moments, damping, BLOCK)
    push = None if moments is None else fed.push
    rows, values = native.trellis_encode(
        weights, fed.importance, push, table.values, table.unit, bits, threads, BLOCK, AHEAD, SPREAD
    )
    return TrellisTensor(bits, table.values, rows, values)


def _plain(columns: int) -> Feedback:
    return Feedback(np.empty((0, 0), np.float32), np.ones(columns, np.float32))
