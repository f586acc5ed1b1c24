"""A tensor's values to the bytes of a type: plain floats here, blocks by the native writers.

Knows values and types; knows no file and no recipe. Values are decoded and encoded some rows at a time, so that a
large matrix takes little memory.
How errors of earlier columns move the targets of later ones is here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadModelFile
from freehold.run.formats import QuantType, Tensor, dequantize

# --- how errors of earlier columns move the targets of later ones (LDLQ), from the inputs' moments --
# The error E of a row costs E H E^T. With H = M D M^T, M block upper triangular with unit blocks, that is the
# sum over blocks of (E M)_b D_b (E M)_b^T: a block whose target is moved by the errors before it, times M, is
# left with its own error alone. Source: arXiv 2307.13304 (QuIP).
BLOCK = 8  # columns that the encoder commits at once
DAMPING = 0.3  # of an input's own moment, added to it
_LEAST = 0.01  # of the mean moment, added to every input's
_COLUMNS = 256  # of a step of the root


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the encoder needs of moments: `push` [n, width], and how much each column's own error counts, [n]."""

    push: F32
    importance: F32


def feedback(moments: Sequence[F32], damping: float = DAMPING, block: int = BLOCK) -> Feedback:
    """Factor blocks of moments along a diagonal, each input's own moment grown by `damping` times itself.

    So what two inputs have in common counts 1 / (1 + damping) of what calibration saw, whatever their size. Inputs that
    it never saw are left with a hundredth of the mean. Raises BadModelFile for moments that are not finite.
    """
    columns, width = sum(map(len, moments)), len(moments[0])
    push, importance = np.zeros((columns, width), np.float32), np.empty(columns, np.float32)
    mean = sum(float(np.trace(h, dtype=np.float64)) for h in moments) / columns or 1.0
    if not math.isfinite(mean):
        raise BadModelFile(
            "the model computes NaN or infinity for the texts that it is calibrated on",
            "its weights are damaged: fetch it again",
        )
    first = 0
    for h in moments:
        part = slice(first, first + len(h))
        importance[part] = _factor(h, damping, _LEAST * mean, block, push[part, : len(h)])
        first += len(h)
    return Feedback(push, importance / importance.mean())


def _factor(h: F32, damping: float, added: float, block: int, push: F32) -> F32:
    """Write M - I to `push`, and return the diagonal of D."""
    upper = _upper_root(h, damping, added)
    importance = np.empty(len(h), np.float32)
    for first in range(0, len(h), block):
        part = slice(first, min(first + block, len(h)))
        own = upper[part, part].astype(np.float64)
        importance[part] = np.einsum("ij,ij->i", own, own)
        push[:first, part] = upper[:first, part] @ np.linalg.inv(own).astype(np.float32)
        push[first:, part] = 0
    return importance


def _upper_root(h: F32, damping: float, added: float) -> F32:
    """Find the upper triangular U with U U^T = h + damping * diag(h) + added * I; `added` grows until there is one."""
    step = grown = added
    while True:
        upper = h.copy()
        diagonal = np.einsum("ii->i", upper)
        diagonal *= np.float32(1 + damping)
        diagonal += np.float32(grown)
        try:
            _root(upper)
        except np.linalg.LinAlgError:
            step *= 10
            grown += step
        else:
            return upper


def _root(h: F32) -> None:
    """Replace symmetric h by U, some columns at a time from the last: matrix products, and one matrix of memory."""
    for last in range(len(h), 0, -_COLUMNS):
        own, before = slice(max(last - _COLUMNS, 0), last), max(last - _COLUMNS, 0)
        h[own, own] = np.linalg.cholesky(h[own, own][::-1, ::-1])[::-1, ::-1]
        h[:before, own] = h[:before, own] @ np.linalg.inv(h[own, own].astype(np.float64)).T.astype(np.float32)
        for first in range(0, before, _COLUMNS):
            rows = slice(first, first + _COLUMNS)
            h[rows, first:before] -= h[rows, own] @ h[first:before, own].T
        h[own, :before] = 0


F32 = NDArray[np.float32]


# --- values to bytes --------------------------------------------------------------------------------

U8 = NDArray[np.uint8]
SLAB = 1 << 22  # values decoded at once: 16 MB of float32
_LARGEST_F16 = 65504.0


def slabs(tensor: Tensor) -> Iterator[F32]:
    """Yield a tensor's values in rows, float32 [rows, K]. Raises BadModelFile for NaN and infinity."""
    k = tensor.shape[-1] if tensor.shape else 1
    step, rows = max(SLAB // k, 1), tensor.rows  # once: a changed tensor computes them
    for first in range(0, len(rows), step):
        values = dequantize(rows[first : first + step], tensor.type, k, tensor.table)
        if not np.isfinite(values).all():
            raise BadModelFile(
                f"tensor {tensor.name} holds NaN or infinity", "it is damaged; fetch the model again"
            )
        yield values


def encoded_pieces(
    tensor: Tensor, type: QuantType, threads: native.Threads, importance: F32 | None = None
) -> Iterator[U8]:
    """Yield a tensor's bytes as `type`, in order; its own type's are copied.

    `importance`: how much the squared error in each column counts, float32 [K]; plain types have no use for it.
    """
    if type is tensor.type:
        yield tensor.raw
        return
    for values in slabs(tensor):
        yield encode_rows(values, type, threads, importance)


def encode_rows(values: F32, type: QuantType, threads: native.Threads, importance: F32 | None = None) -> U8:
    """Return rows of values as bytes of `type`, uint8 [rows, row bytes]."""
    if type is QuantType.F32:
        return values.view(np.uint8)
    if type is QuantType.F16:
        if np.abs(values).max(initial=0) > _LARGEST_F16:
            raise BadModelFile(
                f"a value of {np.abs(values).max():g} is beyond float16, whose largest is {_LARGEST_F16:g}",
                "write BF16 or Q8_0",
            )
        return values.astype(np.float16).view(np.uint8)
    if type is QuantType.BF16:
        return _bf16(values).view(np.uint8)
    weighted: Any = {} if importance is None else {"importance": importance}
    return native.quantize_rows(values, type.name, threads, **weighted)


def _bf16(values: F32) -> NDArray[np.uint16]:
    """Round to the nearest BF16, to even between two."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


# --- encodes a float matrix as T2 or T3: the table, the bytes of all rows, and what they stand for --
# The same arguments give the same bytes, for any number of threads.

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


# --- the trellis tables of T2 and T3: 128 values each, in units of `unit` for a source of variance 1
# Trained on Gaussian rows: 24 starts, half at random and half with each state's successors spread evenly over
# the quantiles, the best two of them for longer. Groups of 32 with four-bit scales come to a squared error of
# 0.0759 (2 bits) and 0.0198 (3 bits).


@dataclass(frozen=True, slots=True)
class TrellisTable:
    """Values of the 128 windows, int8 of up to 127 in size, and the scale by which they mean a source of variance 1."""

    values: NDArray[np.int8]
    unit: float


def _table(unit: float, text: str) -> TrellisTable:
    return TrellisTable(np.array(text.split(), np.int8), unit)


# fmt: off
TABLES = {
    2: _table(0.019858, """
        -12 66 20 50 -119 -23 -88 -72 50 27 -34 1 -14 -62 -17 22 46 -10 -5 -67 -3 59
        -83 -37 -70 49 20 67 38 -6 99 -111 23 26 66 -19 37 -68 -31 2 -23 -43 5 34
        61 11 -50 -7 8 -47 26 56 -39 21 -25 16 2 15 -13 -54 -72 81 -35 -2 78 -9
        -41 -71 -2 11 44 -32 7 86 38 127 16 48 6 -43 -26 61 79 13 103 -49 5 64
        36 -19 87 -12 1 -38 35 32 -45 -56 -8 18 -33 46 6 34 -67 0 -102 -33 -66 -17
        41 75 -79 20 -42 -17 27 -10 43 -13 -23 -68 -42 20 -28 31 1 -36
    """),
    3: _table(0.020453, """
        -92 6 -26 56 -39 -4 -43 42 -29 -56 79 29 -18 56 58 20 -49 40 67 -16 26 89
        44 -24 18 125 -22 -15 92 -32 -30 -50 -12 -78 -10 -34 91 27 8 72 -99 15 44 -61
        -36 16 34 64 62 -9 39 109 -21 11 -7 -44 2 -16 -69 -35 49 -54 1 -90 19 -44
        5 -58 48 -67 -80 -8 60 32 -40 95 -2 33 -108 -11 -28 -25 -82 32 10 -41 24 7
        -14 -33 9 -2 28 -127 -53 39 3 69 -46 14 -6 47 75 23 -51 0 25 13 -62 0
        -14 -29 40 23 21 -1 -66 -20 -23 -76 35 61 -6 51 12 -16 17 4
    """),
}
# fmt: on
