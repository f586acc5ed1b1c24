"""The types that weights are stored in: GGUF's ids, blocks and bytes, and the names of types that are not read.

Knows numbers and names; decodes nothing (blocks.py does).
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from freehold.base.errors import BadModelFile, UnsupportedModel


class QuantType(enum.IntEnum):
    """How a tensor's numbers are stored; the values are GGUF's type ids, below zero what only safetensors hold."""

    U8 = -2
    F8_E4M3 = -1
    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9  # activations only; never a weight
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15  # activations only; never a weight
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    T2 = 0x46480002  # Freehold's own, far from what others count up to; trellis.py has their layout
    T3 = 0x46480003


class BlockLayout(NamedTuple):
    """`elems` consecutive weights of a row take `bytes` bytes."""

    elems: int
    bytes: int


LAYOUTS: dict[QuantType, BlockLayout] = {
    QuantType.U8: BlockLayout(1, 1),
    QuantType.F8_E4M3: BlockLayout(1, 1),
    QuantType.F32: BlockLayout(1, 4),
    QuantType.F16: BlockLayout(1, 2),
    QuantType.BF16: BlockLayout(1, 2),
    QuantType.F64: BlockLayout(1, 8),
    QuantType.I8: BlockLayout(1, 1),
    QuantType.I16: BlockLayout(1, 2),
    QuantType.I32: BlockLayout(1, 4),
    QuantType.I64: BlockLayout(1, 8),
    QuantType.Q4_0: BlockLayout(32, 2 + 16),  # f16 scale, nibbles
    QuantType.Q4_1: BlockLayout(32, 4 + 16),  # f16 scale and minimum, nibbles
    QuantType.Q5_0: BlockLayout(32, 2 + 4 + 16),  # f16 scale, fifth bits, nibbles
    QuantType.Q5_1: BlockLayout(32, 4 + 4 + 16),
    QuantType.Q8_0: BlockLayout(32, 2 + 32),
    QuantType.Q2_K: BlockLayout(256, 16 + 64 + 4),  # 16 4-bit scales and minima, crumbs, 2 f16
    QuantType.Q3_K: BlockLayout(256, 32 + 64 + 12 + 2),  # third bits, crumbs, 16 6-bit scales, f16
    QuantType.Q4_K: BlockLayout(256, 4 + 12 + 128),  # 2 f16, 8 6-bit scales and minima, nibbles
    QuantType.Q5_K: BlockLayout(256, 4 + 12 + 32 + 128),
    QuantType.Q6_K: BlockLayout(256, 128 + 64 + 16 + 2),  # nibbles, crumbs, 16 int8 scales, f16
    QuantType.IQ4_NL: BlockLayout(32, 2 + 16),
    QuantType.IQ4_XS: BlockLayout(256, 2 + 2 + 4 + 128),  # f16, high and low parts of 8 6-bit scales
    QuantType.IQ2_XXS: BlockLayout(256, 2 + 64),
    QuantType.IQ2_XS: BlockLayout(256, 2 + 64 + 8),
    QuantType.IQ2_S: BlockLayout(256, 2 + 32 + 32 + 8 + 8),
    QuantType.IQ3_XXS: BlockLayout(256, 2 + 64 + 32),
    QuantType.IQ3_S: BlockLayout(256, 2 + 64 + 8 + 32 + 4),
    QuantType.IQ1_S: BlockLayout(256, 2 + 32 + 16),
    QuantType.IQ1_M: BlockLayout(256, 32 + 16 + 8),
    QuantType.TQ1_0: BlockLayout(256, 48 + 4 + 2),  # five ternary digits a byte, four in the last 4
    QuantType.TQ2_0: BlockLayout(256, 64 + 2),
    QuantType.MXFP4: BlockLayout(32, 1 + 16),  # E8M0 scale, E2M1 nibbles
    QuantType.NVFP4: BlockLayout(64, 4 + 32),  # a UE4M3 scale per 16, E2M1 nibbles
    # Two scales in a byte, two bits per weight; a row begins with a scale of its own.
    QuantType.T2: BlockLayout(64, 1 + 16),
    QuantType.T3: BlockLayout(64, 1 + 24),
}
TABLE_TYPES = (QuantType.T2, QuantType.T3)  # read through a table that a tensor begins with
TABLE_BYTES = 128
_TABLE_ROW_BYTES = 2  # before a row's blocks, of which the last may be half a one

_ACTIVATION_TYPES = (QuantType.Q8_1, QuantType.Q8_K)

_IK_FORK = "ik_llama.cpp, a fork of llama.cpp"
_IK_TABLE = """
97 Q8_0_X4 98 Q8_1_X4 99 Q8_2_X4 133 Q6_0 134 IQ1_BN 135 IQ2_BN 136 Q8_K64 137 IQ2_K 138 IQ3_K 139 IQ4_K
140 IQ5_K 141 IQ6_K 144 IQ4_KS 145 IQ2_KS 146 IQ4_KSS 147 Q8_K16 148 Q8_K32 149 Q8_KR8 150 Q8_K128
151 Q8_KV 152 IQ5_KS 153 IQ2_KT 154 IQ3_KT 155 IQ4_KT 156 IQ3_KS 157 IQ2_KL 158 IQ1_KT 202 Q4_0_R8
206 Q5_0_R4 208 Q8_0_R8 210 Q2_K_R4 211 Q3_K_R4 212 Q4_K_R4 213 Q5_K_R4 214 Q6_K_R4 216 IQ2_XXS_R4
217 IQ2_XS_R4 218 IQ3_XXS_R4 219 IQ1_S_R4 220 IQ4_NL_R4 221 IQ3_S_R4 222 IQ2_S_R4 223 IQ4_XS_R8
229 IQ1_M_R4 230 BF16_R16 233 Q6_0_R4 335 IQ2_BN_R4 337 IQ2_K_R4 338 IQ3_K_R4 339 IQ4_K_R4 340 IQ5_K_R4
344 IQ4_KS_R4 352 IQ5_KS_R4 397 Q8_K_R16 398 Q8_KV_R8 399 Q8_K_R8
"""
_IK_NAMES = dict(zip(map(int, _IK_TABLE.split()[::2]), _IK_TABLE.split()[1::2], strict=True))
_REMOVED = "an early llama.cpp, which has dropped it"
_FOREIGN_TYPES: dict[int, tuple[str, str]] = {
    4: ("Q4_2", _REMOVED),
    5: ("Q4_3", _REMOVED),
    31: ("Q4_0_4_4", _REMOVED),
    32: ("Q4_0_4_8", _REMOVED),
    33: ("Q4_0_8_8", _REMOVED),
    36: ("I2_S", "BitNet's bitnet.cpp (the id was IQ4_NL_4_4 in an early llama.cpp)"),
    37: ("IQ4_NL_4_8", _REMOVED),
    38: ("IQ4_NL_8_8", _REMOVED),
    41: ("Q1_0", "newer versions of llama.cpp"),
    42: ("Q2_0", "newer versions of llama.cpp"),
}
_IK_RANGES = (range(97, 100), range(133, 159), range(202, 400))


def quant_type(type_id: int) -> QuantType:
    """Return the QuantType with GGUF id `type_id`.

    Raises UnsupportedModel for ids of forks, removed and activation-only types, naming each, and for
    unknown ids.
    """
    try:
        type = QuantType(type_id)
    except ValueError:
        raise _foreign_type(type_id) from None
    if type in _ACTIVATION_TYPES:
        raise UnsupportedModel(
            f"tensor type {type.name} (id {type_id}) holds activations, never weights",
            "the file was written by a broken converter; fetch another build of this model",
        )
    return type


def _foreign_type(type_id: int) -> UnsupportedModel:
    hint = "fetch a build of this model in a common type: Q4_K_M, Q8_0 or F16, for example"
    if any(type_id in ids for ids in _IK_RANGES):
        name = _IK_NAMES.get(type_id, "without a name known here")
        return UnsupportedModel(f"tensor type {name} (id {type_id}) exists only in {_IK_FORK}", hint)
    if type_id in _FOREIGN_TYPES:
        name, owner = _FOREIGN_TYPES[type_id]
        return UnsupportedModel(f"tensor type {name} (id {type_id}) exists only in {owner}", hint)
    return UnsupportedModel(
        f"tensor type id {type_id} is unknown; known ids are 0 to {QuantType.NVFP4}", hint
    )


def block_layout(type: QuantType) -> BlockLayout:
    """Return elements and bytes per block; UnsupportedModel for activation-only types."""
    if type not in LAYOUTS:
        raise UnsupportedModel(f"tensor type {type.name} holds activations, never weights")
    return LAYOUTS[type]


def row_bytes(type: QuantType, k: int) -> int:
    """Return the bytes of a row of `k` weights; BadModelFile if `k` is not a positive multiple of the block.

    Types that have a table take half a block too: any multiple of 32.
    """
    elems, size = block_layout(type)
    if type in TABLE_TYPES and k > 0 and k % elems == elems // 2:
        return _TABLE_ROW_BYTES + k // elems * size + 1 + size // 2
    if k <= 0 or k % elems:
        raise BadModelFile(f"a row of {k} weights cannot be {type.name}, whose blocks hold {elems}")
    return k // elems * size + (_TABLE_ROW_BYTES if type in TABLE_TYPES else 0)


def row_columns(type: QuantType, size: int) -> int:
    """Return how many weights of a type that has a table a row of `size` bytes holds."""
    elems, block = block_layout(type)
    blocks, rest = divmod(size - _TABLE_ROW_BYTES, block)
    return blocks * elems + (elems // 2 if rest else 0)


def tensor_bytes(type: QuantType, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of `shape` (row-major), its table included; BadModelFile as row_bytes."""
    rows = row_bytes(type, shape[-1] if shape else 1) * math.prod(shape[:-1])
    return rows + (TABLE_BYTES if type in TABLE_TYPES else 0)
