"""Our decoders against the gguf package's, bit for bit, on random and on nasty blocks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants as reference
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import blocks
from freehold.run.formats.blocks import dequantize, has_codes, split_codes
from freehold.run.formats.weight_types import LAYOUTS, TABLE_TYPES, QuantType, quant_type, row_bytes

PLAIN_DTYPES = {
    QuantType.F64: "<f8",
    QuantType.I8: "i1",
    QuantType.I16: "<i2",
    QuantType.I32: "<i4",
    QuantType.I64: "<i8",
}
# FP8 is safetensors' alone, and types with a table are Freehold's.
GGUF_LAYOUTS = {t: layout for t, layout in LAYOUTS.items() if t >= 0 and t not in TABLE_TYPES}
CODED = [t for t in QuantType if t in LAYOUTS and has_codes(t)]


def random_rows(type: QuantType, k: int, rows: int = 24, seed: int = 0) -> np.ndarray:
    """Random bytes; the first row is all zero, the second all ones (NaN scales), the third all 0x80."""
    raw = np.random.default_rng([seed, type]).integers(0, 256, (rows, row_bytes(type, k)), np.uint8)
    raw[0], raw[1], raw[2] = 0, 255, 0x80
    return raw


def expected(raw: np.ndarray, type: QuantType) -> np.ndarray:
    with np.errstate(all="ignore"):
        if type in PLAIN_DTYPES:
            return raw.view(PLAIN_DTYPES[type]).astype(np.float32)
        return reference.dequantize(raw, GGMLQuantizationType(type))


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32 and got.shape == want.shape
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[~nan].view(np.uint32), want[~nan].view(np.uint32))


@pytest.mark.parametrize("type", list(GGUF_LAYOUTS), ids=lambda t: t.name)
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_decoder_agrees_with_gguf_package(type: QuantType, blocks: int) -> None:
    k = LAYOUTS[type].elems * blocks
    raw = random_rows(type, k)
    assert_same_bits(dequantize(raw, type, k), expected(raw, type))


@pytest.mark.parametrize("type", CODED, ids=lambda t: t.name)
def test_codes_times_scales_are_the_weights(type: QuantType) -> None:
    k = LAYOUTS[type].elems * 4
    raw = random_rows(type, k, seed=1)
    table = np.arange(-64, 64, dtype=np.int8) if type in TABLE_TYPES else None
    codes, scales = split_codes(raw, type, k, table)
    assert codes.dtype == np.int8 and codes.shape == (len(raw), k) and codes.min() >= -127
    assert scales.dtype == np.float32 and scales.shape == (len(raw), k // 16)
    with np.errstate(all="ignore"):
        assert_same_bits(codes * np.repeat(scales, 16, axis=1), dequantize(raw, type, k, table))


def test_split_codes_takes_every_type_without_a_native_kernel() -> None:
    for type in QuantType:
        if type.name.startswith(("IQ", "TQ", "MXFP4", "NVFP4")):
            assert has_codes(type), type.name


@pytest.mark.parametrize("type", [QuantType.Q4_K, QuantType.F16, QuantType.Q8_0], ids=lambda t: t.name)
def test_split_codes_refuses_types_without_plain_codes(type: QuantType) -> None:
    with pytest.raises(BadModelFile, match=type.name):
        split_codes(random_rows(type, 256), type, 256)


def test_rows_longer_than_a_chunk_decode_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_rows(QuantType.Q6_K, 512)
    whole = dequantize(raw, QuantType.Q6_K, 512)
    monkeypatch.setattr(blocks, "_CHUNK_ELEMS", 700)
    assert_same_bits(dequantize(raw, QuantType.Q6_K, 512), whole)


def test_layouts_agree_with_gguf_package() -> None:
    for type, layout in GGUF_LAYOUTS.items():
        assert tuple(layout) == GGML_QUANT_SIZES[GGMLQuantizationType(type)], type.name


@pytest.mark.parametrize(
    "name, type",
    [
        ("iq1", "IQ1_S"),
        ("iq2_xxs", "IQ2_XXS"),
        ("iq2_xs", "IQ2_XS"),
        ("iq2_s", "IQ2_S"),
        ("iq3_s", "IQ3_S"),
        ("iq3_xxs", "IQ3_XXS"),
    ],
)
def test_grids_are_those_of_the_gguf_package(name: str, type: str) -> None:
    theirs = getattr(gguf.quants, type)
    theirs.init_grid()
    assert np.array_equal(blocks._grid(name), theirs.grid.reshape(theirs.grid_shape))


@pytest.mark.parametrize(
    "type_id, words",
    [
        (4, "Q4_2"),
        (31, "Q4_0_4_4"),
        (36, "I2_S"),
        (38, "IQ4_NL_8_8"),
        (41, "Q1_0"),
        (42, "Q2_0"),
        (97, "ik_llama"),
        (139, "ik_llama"),
        (158, "ik_llama"),
        (202, "ik_llama"),
        (399, "ik_llama"),
        (9, "activations"),
        (15, "activations"),
        (2**32 - 1, "unknown"),
        (400, "unknown"),
    ],
)
def test_foreign_type_ids_are_named(type_id: int, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words) as caught:
        quant_type(type_id)
    assert str(type_id) in caught.value.message and caught.value.hint


def test_partial_blocks_are_refused() -> None:
    for k in (0, -32, 31, 300):
        with pytest.raises(BadModelFile, match=str(k)):
            row_bytes(QuantType.Q4_K, k)


def test_rows_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(BadModelFile, match=r"\[N, 34\]"):
        dequantize(np.zeros((2, 33), np.uint8), QuantType.Q8_0, 32)
