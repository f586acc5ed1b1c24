"""Decodes stored weights in plain NumPy: rows to float32, or to integer codes and scales for the packer.

The oracle that native kernels are tested against, and not fast; types without a kernel come this way. Every format but
the plain numbers stores, per block, small integer codes and float scales, so a decoder here yields
`codes * scales + offsets` and nothing else. Layouts follow ggml's block structs (the GGUF type registry); a weight's
place in its block is described once, by `_planes`. Knows bytes and numbers; knows no tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from freehold.base.errors import BadModelFile
from freehold.run.formats import trellis
from freehold.run.formats.weight_types import LAYOUTS, TABLE_TYPES, QuantType, row_bytes

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
F32 = npt.NDArray[np.float32]


class DecodedBlocks(NamedTuple):
    """Decoded blocks: weight = codes * scales + offsets, the latter two one per group of a block."""

    codes: I8  # [B, block_elems]
    scales: F32  # [B, groups]
    offsets: F32 | None  # [B, groups]


# Pieces of blocks. `b` is always uint8 [B, bytes], one row per block.


def _f16(b: U8) -> F32:
    return np.ascontiguousarray(b).view("<f2").astype(np.float32)


def _u16(b: U8) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(b).view("<u2")


def _u32(b: U8) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(b).view("<u4")


def _planes(b: U8, span: int, width: int) -> U8:
    """Unpack `width`-bit fields: runs of `span` bytes hold their lowest fields first, then the next ones."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    fields = (b.reshape(len(b), -1, 1, span) >> shifts) & np.uint8((1 << width) - 1)
    return fields.reshape(len(b), -1)


def _bits(b: U8) -> U8:
    return _planes(b, 1, 1)


def _fields(words: npt.NDArray[np.unsignedinteger], shifts: Iterable[int], mask: int) -> npt.NDArray[np.intp]:
    """Take the fields at `shifts` out of each word: [B, W] -> [B, W * len(shifts)], word by word."""
    steps = np.array(list(shifts), words.dtype)
    return ((words[:, :, None] >> steps) & words.dtype.type(mask)).reshape(len(words), -1).astype(np.intp)


# Formats of 32 weights with one scale.


def _q4_0(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_planes(b[:, 2:], 16, 4).view(np.int8) - np.int8(8), _f16(b[:, :2]), None)


def _q4_1(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_planes(b[:, 4:], 16, 4).view(np.int8), _f16(b[:, :2]), _f16(b[:, 2:4]))


def _five_bits(high: U8, low: U8) -> I8:
    return (_planes(low, 16, 4) | _bits(high) << np.uint8(4)).view(np.int8)


def _q5_0(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_five_bits(b[:, 2:6], b[:, 6:]) - np.int8(16), _f16(b[:, :2]), None)


def _q5_1(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_five_bits(b[:, 4:8], b[:, 8:]), _f16(b[:, :2]), _f16(b[:, 2:4]))


def _q8_0(b: U8) -> DecodedBlocks:
    return DecodedBlocks(b[:, 2:].view(np.int8), _f16(b[:, :2]), None)


# Super-blocks of 256 with integer scales for groups of 16 or 32.


def _q2_k(b: U8) -> DecodedBlocks:
    scales, super_scales = b[:, :16], _f16(b[:, 80:84])
    return DecodedBlocks(
        _planes(b[:, 16:80], 32, 2).view(np.int8),
        super_scales[:, :1] * (scales & 15).astype(np.float32),
        -(super_scales[:, 1:] * (scales >> 4).astype(np.float32)),
    )


def _q3_k(b: U8) -> DecodedBlocks:
    # Sixteen 6-bit scales: the low nibbles in 8 bytes, then the high crumbs in 4.
    low, high = _planes(b[:, 96:104], 8, 4), _planes(b[:, 104:108], 4, 2)
    scales = ((low | high << np.uint8(4)).view(np.int8) - np.int8(32)).astype(np.float32)
    # A set third bit means +4 on a code that starts at -4.
    third = _planes(b[:, :32], 32, 1)
    codes = (_planes(b[:, 32:96], 32, 2) | third << np.uint8(2)).view(np.int8) - np.int8(4)
    return DecodedBlocks(codes, _f16(b[:, 108:110]) * scales, None)


def _k_scales(b: U8) -> tuple[F32, F32]:
    """Unpack Q4_K's and Q5_K's eight 6-bit scales and minima, after two f16: uint8 [B, 16] -> 2 x [B, 8].

    Bytes 0-3 and 4-7 hold the first four scales and minima; their top two bits are the top bits of the last
    four, whose low nibbles share bytes 8-11.
    """
    first_scales, first_mins, last = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = np.hstack([first_scales & 63, (last & 15) | (first_scales >> 6) << np.uint8(4)])
    mins = np.hstack([first_mins & 63, (last >> 4) | (first_mins >> 6) << np.uint8(4)])
    super_scales = _f16(b[:, :4])
    return super_scales[:, :1] * scales.astype(np.float32), -(super_scales[:, 1:] * mins.astype(np.float32))


def _q4_k(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_planes(b[:, 16:], 32, 4).view(np.int8), *_k_scales(b[:, :16]))


def _q5_k(b: U8) -> DecodedBlocks:
    high = _planes(b[:, 16:48], 32, 1) << np.uint8(4)
    return DecodedBlocks((_planes(b[:, 48:], 32, 4) | high).view(np.int8), *_k_scales(b[:, :16]))


def _q6_k(b: U8) -> DecodedBlocks:
    high = _planes(b[:, 128:192], 32, 2) << np.uint8(4)
    codes = (_planes(b[:, :128], 64, 4) | high).view(np.int8) - np.int8(32)
    return DecodedBlocks(codes, _f16(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32), None)


# Four-bit codes that index a table.

_IQ4_CODES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_E2M1_CODES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)  # doubled


def _iq4_nl(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_IQ4_CODES[_planes(b[:, 2:], 16, 4)], _f16(b[:, :2]), None)


def _iq4_xs(b: U8) -> DecodedBlocks:
    high = _fields(_u16(b[:, 2:4]), range(0, 16, 2), 3)
    low = _planes(b[:, 4:8], 1, 4)
    scales = ((low | high << 4) - 32).astype(np.float32)
    return DecodedBlocks(_IQ4_CODES[_planes(b[:, 8:], 16, 4)], _f16(b[:, :2]) * scales, None)


def _mxfp4(b: U8) -> DecodedBlocks:
    # Half of 2^(e-127), because the codes are doubled; the two smallest halves are subnormal.
    scales = np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128)
    return DecodedBlocks(_E2M1_CODES[_planes(b[:, 1:], 16, 4)], scales, None)


def _nvfp4(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_E2M1_CODES[_planes(b[:, 4:], 8, 4)], _half_ue4m3()[b[:, :4]], None)


@cache
def _half_ue4m3() -> F32:
    """Tabulate half of each UE4M3 value (codes are doubled): bias 7, sign bit ignored, 0x7F reads as 0."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    normal = np.ldexp((8 + mantissa).astype(np.float32), exponent - 11)
    values = np.where(exponent == 0, np.ldexp(mantissa.astype(np.float32), -10), normal)
    values[0x7F] = 0
    return values.astype(np.float32)


# Ternary digits.


def _tq1_0(b: U8) -> DecodedBlocks:
    parts = [_trits(b[:, :32], 5), _trits(b[:, 32:48], 5), _trits(b[:, 48:52], 4)]
    return DecodedBlocks(np.hstack(parts), _f16(b[:, 52:]), None)


def _trits(b: U8, digits: int) -> I8:
    """Take base-3 digits, highest first: a byte is n / 243 in 256ths, and each times 3 carries one out."""
    shifted = b[:, None, :] * (3 ** np.arange(digits)).astype(np.uint8)[:, None]  # wraps at 256 on purpose
    digit = (shifted.astype(np.uint16) * 3) >> 8
    return (digit.astype(np.int8) - np.int8(1)).reshape(len(b), -1)


def _tq2_0(b: U8) -> DecodedBlocks:
    return DecodedBlocks(_planes(b[:, :64], 32, 2).view(np.int8) - np.int8(1), _f16(b[:, 64:]), None)


# Groups of eight (IQ1, IQ2) or four (IQ3) weights stored as an index into a grid of code vectors.


@cache
def _grid(name: str) -> I8:
    """Load a code grid, int8 [entries, 4 or 8]. Source: ggml's `ggml-common.h` tables, compared by a test
    with those of the `gguf` package; iq_grids.npz holds them because they follow no formula."""
    with np.load(Path(__file__).with_name("iq_grids.npz"), allow_pickle=False) as grids:
        return grids[name]


@cache
def _sign_table() -> I8:
    """Tabulate sign patterns, int8 [128, 8] of +-1: seven stored bits, the eighth makes the parity even."""
    index = np.arange(128, dtype=np.uint8)
    bits = np.unpackbits(index[:, None], axis=1, bitorder="little")
    bits[:, 7] = bits.sum(axis=1) & 1
    return 1 - 2 * bits.astype(np.int8)


def _bit_signs(b: U8) -> I8:
    return np.int8(1) - np.int8(2) * _bits(b).view(np.int8)


def _lookup(grid: I8, index: npt.NDArray[np.intp], signs: I8) -> I8:
    """Return grid rows times signs: index [B, G], signs of [B, 256] in any grouping -> int8 [B, 256]."""
    return grid[index].reshape(len(index), -1) * signs.reshape(len(index), -1)


def _iq_scales(super_scale: F32, nibbles: npt.NDArray[np.integer], unit: float) -> F32:
    return super_scale * (2 * nibbles.astype(np.int32) + 1).astype(np.float32) * np.float32(unit)


def _iq2_xxs(b: U8) -> DecodedBlocks:
    pairs = _u32(b[:, 2:]).reshape(len(b), 8, 2)  # four grid bytes; four 7-bit signs and a 4-bit scale
    index = b[:, 2:].reshape(len(b), 8, 8)[:, :, :4].reshape(len(b), -1).astype(np.intp)
    signs = _sign_table()[_fields(pairs[:, :, 1], (0, 7, 14, 21), 127)]
    scales = _iq_scales(_f16(b[:, :2]), pairs[:, :, 1] >> 28, 0.125)
    return DecodedBlocks(_lookup(_grid("iq2_xxs"), index, signs), scales, None)


def _iq2_xs(b: U8) -> DecodedBlocks:
    words = _u16(b[:, 2:66])
    signs = _sign_table()[words >> 9]
    scales = _iq_scales(_f16(b[:, :2]), _planes(b[:, 66:], 1, 4), 0.125)
    return DecodedBlocks(_lookup(_grid("iq2_xs"), (words & 511).astype(np.intp), signs), scales, None)


def _iq2_s(b: U8) -> DecodedBlocks:
    high = _planes(b[:, 66:74], 1, 2).astype(np.intp)
    scales = _iq_scales(_f16(b[:, :2]), _planes(b[:, 74:], 1, 4), 0.125)
    return DecodedBlocks(
        _lookup(_grid("iq2_s"), b[:, 2:34] | high << 8, _bit_signs(b[:, 34:66])), scales, None
    )


def _iq3_xxs(b: U8) -> DecodedBlocks:
    words = _u32(b[:, 66:])
    signs = _sign_table()[_fields(words, (0, 7, 14, 21), 127)]
    scales = _iq_scales(_f16(b[:, :2]), words >> 28, 0.25)
    return DecodedBlocks(_lookup(_grid("iq3_xxs"), b[:, 2:66].astype(np.intp), signs), scales, None)


def _iq3_s(b: U8) -> DecodedBlocks:
    index = b[:, 2:66] | _bits(b[:, 66:74]).astype(np.intp) << 8
    scales = _f16(b[:, :2]) * (1 + 2 * _planes(b[:, 106:], 1, 4)).astype(np.float32)
    return DecodedBlocks(_lookup(_grid("iq3_s"), index, _bit_signs(b[:, 74:106])), scales, None)


def _iq1(index: npt.NDArray[np.intp], shift_down: npt.NDArray[np.bool_], scales: F32) -> DecodedBlocks:
    """Decode IQ1, a ternary grid +-1/8: eight times that is an integer, and a scale over 8 is exact."""
    shift = np.where(shift_down, np.int8(-1), np.int8(1)).reshape(len(index), -1)
    each = np.repeat(shift, 256 // shift.shape[1], axis=1)
    codes = _grid("iq1")[index].reshape(len(index), -1) * np.int8(8) + each
    return DecodedBlocks(codes, scales * np.float32(0.125), None)


def _iq1_s(b: U8) -> DecodedBlocks:
    words = _u16(b[:, 34:])  # four 3-bit index tops, a 3-bit scale and the shift's sign per 32 weights
    index = b[:, 2:34] | _fields(words, (0, 3, 6, 9), 7) << 8
    scales = _f16(b[:, :2]) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    return _iq1(index, words >> 15 != 0, scales)


def _iq1_m(b: U8) -> DecodedBlocks:
    words = _u16(b[:, 48:])  # four 3-bit scales each; the top nibbles together are the f16 super-scale
    tops = (words >> 12).astype(np.uint16) << np.array([0, 4, 8, 12], np.uint16)
    super_scale = (
        np.bitwise_or.reduce(tops, axis=1, keepdims=True).astype("<u2").view("<f2").astype(np.float32)
    )
    scales = super_scale * (2 * _fields(words, (0, 3, 6, 9), 7) + 1).astype(np.float32)
    nibbles = _planes(b[:, 32:48], 1, 4).astype(np.intp)  # an index top and the shift's sign per 8 weights
    return _iq1(b[:, :32] | (nibbles & 7) << 8, nibbles & 8 != 0, scales)


DECODERS: dict[QuantType, Callable[[U8], DecodedBlocks]] = {
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q5_0: _q5_0,
    QuantType.Q5_1: _q5_1,
    QuantType.Q8_0: _q8_0,
    QuantType.Q2_K: _q2_k,
    QuantType.Q3_K: _q3_k,
    QuantType.Q4_K: _q4_k,
    QuantType.Q5_K: _q5_k,
    QuantType.Q6_K: _q6_k,
    QuantType.IQ4_NL: _iq4_nl,
    QuantType.IQ4_XS: _iq4_xs,
    QuantType.MXFP4: _mxfp4,
    QuantType.NVFP4: _nvfp4,
    QuantType.TQ1_0: _tq1_0,
    QuantType.TQ2_0: _tq2_0,
    QuantType.IQ2_XXS: _iq2_xxs,
    QuantType.IQ2_XS: _iq2_xs,
    QuantType.IQ2_S: _iq2_s,
    QuantType.IQ3_XXS: _iq3_xxs,
    QuantType.IQ3_S: _iq3_s,
    QuantType.IQ1_S: _iq1_s,
    QuantType.IQ1_M: _iq1_m,
}
OFFSET_TYPES = (QuantType.Q4_1, QuantType.Q5_1, QuantType.Q2_K, QuantType.Q4_K, QuantType.Q5_K)


@cache
def _e4m3_table() -> F32:
    """List the float of each byte: sign, four bits of exponent (bias 7), three of mantissa; no infinity, 7F is NaN."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[(code & 127) == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


def _plain(dtype: str) -> Callable[[U8], F32]:
    return lambda raw: raw.view(dtype).astype(np.float32)


PLAIN: dict[QuantType, Callable[[U8], F32]] = {
    QuantType.F8_E4M3: lambda raw: _e4m3_table()[raw],
    QuantType.F32: _plain("<f4"),
    QuantType.F16: _plain("<f2"),
    QuantType.BF16: lambda raw: (raw.view("<u2").astype(np.uint32) << 16).view(np.float32),
    QuantType.F64: _plain("<f8"),
    QuantType.I8: _plain("i1"),
    QuantType.I16: _plain("<i2"),
    QuantType.I32: _plain("<i4"),
    QuantType.I64: _plain("<i8"),
}


# --- rows -------------------------------------------------------------------------------------------

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
