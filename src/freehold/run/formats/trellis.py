"""Freehold's own weight types T2 and T3: two or three bits per weight, read through a table of 128 values.

Knows how a row's bits, scales and table make weights, and how they are laid; chooses no bits (the encoder does) and
knows no file. Not fast: the oracle that native kernels are tested against.


A tensor is its table, int8[128], and its rows one after another. A row of n weights, n a multiple of 32:

    u16                 float16 row scale d, whose low 7 - K mantissa bits are the bit stream's last ones and count as 0
    u8[ceil(n / 64)]    a nibble c for each 32 weights, the first in the low one: their scale is d * FACTORS[c]
    u8[K * n / 8]       the bit stream, a byte's lowest bit first

Weight i is its scale times table[window i], window i being bits K*i to K*i + 6 of the stream, the first one lowest. So
a window shares 7 - K bits with the next one: that is the trellis, and an encoder looks for the best path through it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from freehold.base.errors import BadModelFile
from freehold.run.formats.weight_types import TABLE_BYTES, QuantType, row_bytes, row_columns

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
F32 = npt.NDArray[np.float32]

STATES = TABLE_BYTES
WINDOW = 7  # bits
GROUP = 32  # weights that share a scale
BITS = {QuantType.T2: 2, QuantType.T3: 3}
# Of the row scale, by nibble: 2^(-c/5), then wider steps, for rows where one weight is hundreds of times the others.
FACTORS: F32 = np.array(
    [*2.0 ** (-np.arange(8) / 5), 0.32, 0.26, 0.2, 0.14, 0.09, 0.05, 0.022, 0.005], np.float16
).astype(np.float32)
REQUIRES = "trellis-1"  # what a file that holds these types says under `freehold.requires`


def tail_bits(type: QuantType) -> int:
    """Return how many of the stream's bits are in the row scale's low bits."""
    return WINDOW - BITS[type]


def round_scales(d: npt.ArrayLike, type: QuantType) -> F32:
    """Round row scales, all >= 0, to the nearest that a row of `type` can hold."""
    step = 1 << tail_bits(type)
    values = np.minimum(np.asarray(d, np.float32), np.float32(65504))  # the greatest half
    halves = values.astype("<f2").view("<u2").astype(np.uint32)
    halves = np.minimum((halves + step // 2) // step * step, 0x7BFF // step * step)
    return halves.astype("<u2").view("<f2").astype(np.float32)


def decode(rows: U8, type: QuantType, table: I8) -> tuple[I8, F32]:
    """Decode rows uint8 [N, row bytes] to codes int8 [N, n] and scales float32 [N, n / 32]."""
    n = row_columns(type, rows.shape[1])
    tail, groups = tail_bits(type), n // GROUP
    word = np.ascontiguousarray(rows[:, :2]).view("<u2")
    low = word & np.uint16((1 << tail) - 1)
    d = (word - low).view("<f2").astype(np.float32)
    stream_at = 2 + (groups + 1) // 2
    nibbles = rows[:, 2:stream_at]
    each = np.stack([nibbles & 15, nibbles >> 4], -1).reshape(len(rows), -1)[:, :groups]
    stream = np.hstack([rows[:, stream_at:], low.astype(np.uint8)])
    bits = np.unpackbits(stream, axis=1, bitorder="little")
    state = np.zeros((len(rows), n), np.uint8)
    for j in range(WINDOW):
        state |= bits[:, j : j + BITS[type] * n : BITS[type]] << np.uint8(j)
    return table[state], d * FACTORS[each]


def pack_rows(type: QuantType, d: F32, scales: npt.NDArray[np.integer], states: U8) -> U8:
    """Lay rows of a tensor: uint8 [N, row bytes] from row scales [N], nibbles [N, n / 32] and windows [N, n].

    Raises ValueError where scales are not what `round_scales` gives, or windows do not follow from one another.
    """
    k, tail = BITS[type], tail_bits(type)
    count, n = states.shape
    if not np.array_equal(round_scales(d, type), d):
        raise ValueError(f"row scales of {type.name} rows are rounded by round_scales first")
    if not np.array_equal(states[:, 1:] & ((1 << tail) - 1), states[:, :-1] >> k):
        raise ValueError("the low bits of each window must be the high bits of the one before it")
    rows = np.zeros((count, row_bytes(type, n)), np.uint8)
    first = (states[:, :1, None] >> np.arange(WINDOW, dtype=np.uint8)) & 1
    new = (states[:, 1:, None] >> np.arange(tail, WINDOW, dtype=np.uint8)) & 1
    bits = np.hstack([first.reshape(count, -1), new.reshape(count, -1)])
    stream, last = bits[:, : k * n], bits[:, k * n :]
    word = d.astype("<f2").view("<u2") | (last @ (1 << np.arange(tail))).astype("<u2")
    rows[:, :2] = word.astype("<u2")[:, None].view(np.uint8)
    nibbles = np.zeros((count, -(-n // 64) * 2), np.uint8)
    nibbles[:, : n // GROUP] = scales
    rows[:, 2 : 2 + nibbles.shape[1] // 2] = nibbles[:, ::2] | nibbles[:, 1::2] << 4
    rows[:, 2 + nibbles.shape[1] // 2 :] = np.packbits(stream.astype(np.uint8), axis=1, bitorder="little")
    return rows


def check_table(table: I8, name: str) -> I8:
    """Return the table of tensor `name`; BadModelFile unless its values are -127 to 127."""
    if (table == -128).any():
        raise BadModelFile(
            f"tensor {name}: its table of {STATES} values holds -128; -127 to 127 are allowed",
            "the file is damaged or from a broken writer; fetch or write it again",
        )
    return table
