"""Encodes a float matrix as T2 or T3: the table, the bytes of all rows, and what they stand for.

Knows one matrix; knows no model and no file. The same arguments give the same bytes, for any number of threads.
Path: adapt.quantize -> encode -> native.trellis_encode
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.quantize.feedback import BLOCK, Feedback
from freehold.adapt.quantize.tables import TABLES, TrellisTable
from freehold.errors import BadModelFile

F32 = NDArray[np.float32]

AHEAD, SPREAD = 24, 2  # columns in view beyond a block, and scales tried on each side of the first


@dataclass(frozen=True, slots=True, eq=False)
class TrellisTensor:
    """An encoded matrix: `rows` uint8 [N, row bytes] after a table int8 [128], and the `values` they stand for."""

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
    fed: Feedback | None,
    bits: int,
    threads: native.Threads,
    *,
    table: TrellisTable | None = None,
) -> TrellisTensor:
    """Encode float32 [N, K] with `bits` (2 or 3) a weight.

    `fed` is what its inputs' moments make of errors (feedback); None: all inputs count alike, and no error is pushed.
    Raises BadModelFile for weights that are not finite.
    """
    table = table or TABLES[bits]
    weights = np.ascontiguousarray(weights, np.float32)
    if not (finite := np.isfinite(weights)).all():
        row, column = np.argwhere(~finite)[0]
        raise BadModelFile(f"row {row}, column {column} is {weights[row, column]}, which T{bits} cannot hold")
    importance = np.ones(weights.shape[1], np.float32) if fed is None else fed.importance
    rows, values = native.trellis_encode(
        weights,
        importance,
        None if fed is None else fed.push,
        table.values,
        table.unit,
        bits,
        threads,
        BLOCK,
        AHEAD,
        SPREAD,
    )
    return TrellisTensor(bits, table.values, rows, values)
