"""Decodes rows of stored weights: to float32, or to integer codes and scales for the packer.

Knows rows and types; how a block is laid out is blocks.py's. Not fast: native kernels are, and types without a kernel
come this way.
Path: gguf.open_gguf -> Tensor.numpy -> dequantize, or pack -> split_codes -> native panel
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from freehold.errors import BadModelFile
from freehold.formats import trellis
from freehold.formats.blocks import DECODERS, F32, I8, OFFSET_TYPES, PLAIN, U8, DecodedBlocks
from freehold.formats.weight_types import LAYOUTS, TABLE_TYPES, QuantType, row_bytes

SCALE_ELEMS = 16
"""Inputs that share one scale in `split_codes`: the finest grouping any format uses."""

_CHUNK_ELEMS = 1 << 20  # decoded at a time: temporaries stay near 16 MB however large the matrix


def dequantize(raw: U8, type: QuantType, k: int, table: I8 | None = None) -> F32:
    """Decode rows of bytes to a fresh float32 array.

    `raw` is uint8 [N, row_bytes(type, k)], `table` the tensor's where its type has one; the result is [N, k].
    Values beyond float32 become infinite.
    Raises BadModelFile when the shapes disagree, UnsupportedModel for a type without weights.
    """
    _check_rows(raw, type, k)
    out = np.empty((raw.shape[0], k), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # damaged scales decode to inf or NaN, as stored
        for rows in _row_chunks(raw.shape[0], k):
            if type in PLAIN:
                out[rows] = PLAIN[type](np.ascontiguousarray(raw[rows]))
            else:
                out[rows] = _weights(_decode(raw[rows], type, table)).reshape(-1, k)
    return out


def split_codes(raw: U8, type: QuantType, k: int, table: I8 | None = None) -> tuple[I8, F32]:
    """Decode rows to integer codes and float32 scales whose product is the weights.

    `raw` is uint8 [N, row_bytes(type, k)]. Returns codes int8 [N, k] in -127..127 and scales float32
    [N, k // 16]: `codes * np.repeat(scales, 16, axis=1)` equals `dequantize(raw, type, k)`.
    Raises BadModelFile for types that have offsets or are plain numbers (see `has_codes`).
    """
    if not has_codes(type):
        raise BadModelFile(f"{type.name} weights are not integer codes times a scale")
    _check_rows(raw, type, k)
    codes = np.empty((raw.shape[0], k), np.int8)
    scales = np.empty((raw.shape[0], k // SCALE_ELEMS), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in _row_chunks(raw.shape[0], k):
            blocks = _decode(raw[rows], type, table)
            codes[rows] = blocks.codes.reshape(-1, k)
            repeat = blocks.codes.shape[1] // blocks.scales.shape[1] // SCALE_ELEMS
            scales[rows] = np.repeat(blocks.scales, repeat, axis=1).reshape(-1, k // SCALE_ELEMS)
    return codes, scales


def has_codes(type: QuantType) -> bool:
    """Tell whether `split_codes` takes this type: 8-bit Q8_0 does not fit -127..127, the others do."""
    coded = type in DECODERS or type in TABLE_TYPES
    return coded and type not in OFFSET_TYPES and type is not QuantType.Q8_0


def _check_rows(raw: U8, type: QuantType, k: int) -> None:
    need = row_bytes(type, k)
    if raw.dtype != np.uint8 or raw.ndim != 2 or raw.shape[1] != need:
        raise BadModelFile(
            f"{type.name} rows of {k} weights take uint8 [N, {need}], got {raw.dtype} {list(raw.shape)}"
        )


def _row_chunks(rows: int, k: int) -> Iterable[slice]:
    step = max(1, _CHUNK_ELEMS // k)
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def _decode(rows: U8, type: QuantType, table: I8 | None) -> DecodedBlocks:
    if type in TABLE_TYPES:
        if table is None or table.shape != (trellis.STATES,):
            raise BadModelFile(f"{type.name} rows need the table of {trellis.STATES} values of their tensor")
        return DecodedBlocks(*trellis.decode(rows, type, table), None)
    return DECODERS[type](np.ascontiguousarray(rows).reshape(-1, LAYOUTS[type].bytes))


def _weights(blocks: DecodedBlocks) -> F32:
    count, groups = blocks.scales.shape
    out = blocks.codes.reshape(count, groups, -1).astype(np.float32)
    out *= blocks.scales[:, :, None]
    if blocks.offsets is not None:
        out += blocks.offsets[:, :, None]
    return out
