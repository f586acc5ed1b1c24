"""A tensor's values to the bytes of a type: plain floats here, blocks by the native writers.

Knows values and types; knows no file and no recipe. Values are decoded and encoded some rows at a time, so that a
large matrix takes little memory.
Path: writing.quantize -> encoded_pieces -> native.quantize_rows -> GGUFWriter.write
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.errors import BadModelFile
from freehold.formats import QuantType, Tensor, dequantize

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
SLAB = 1 << 22  # values decoded at once: 16 MB of float32
_LARGEST_F16 = 65504.0


def slabs(tensor: Tensor) -> Iterator[F32]:
    """Yield a tensor's values in rows, float32 [rows, K]. Raises BadModelFile for NaN and infinity."""
    k = tensor.shape[-1] if tensor.shape else 1
    step = max(SLAB // k, 1)
    for first in range(0, len(tensor.rows), step):
        values = dequantize(tensor.rows[first : first + step], tensor.type, k, tensor.table)
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
