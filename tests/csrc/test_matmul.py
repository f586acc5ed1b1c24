"""Panels of every kind: rows decode to the file's floats; products near the oracle; tiles change no bit."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from freehold import _native as native
from freehold.run.formats.blocks import dequantize, split_codes
from freehold.run.formats.weight_types import QuantType, row_bytes

from . import F32, ULP, normal, same_bits

every_isa = pytest.mark.parametrize("isa", native.isas())

HALVES = {  # where a block keeps its f16 scale and minimum
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "MXFP4": (),
}  # fmt: skip
BLOCK = {name: 256 if name.endswith("_K") else 32 for name in HALVES}
PLAIN = ["F32", "F16", "BF16"]
TYPES = [*PLAIN, *HALVES]
CODED = ["IQ4_NL", "MXFP4"]

POOL = native.Threads(2)


def raw_rows(name: str, n: int, k: int) -> np.ndarray:
    """Make n rows of k weights of a GGUF type: random codes, f16 scales and minima of a few thousandths."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), n, k])
    if name in PLAIN:
        w = rng.standard_normal((n, k), np.float32)
        if name == "BF16":
            return np.ascontiguousarray(w.view(np.uint16)[:, 1::2]).view(np.uint8)
        return w.astype("<f2" if name == "F16" else "<f4").view(np.uint8)
    blocks = rng.integers(0, 256, (n, k // BLOCK[name], row_bytes(QuantType[name], BLOCK[name])), np.uint8)
    for at in HALVES[name]:
        scale = rng.uniform(1e-3, 5e-3, blocks.shape[:2]) * rng.choice([-1, 1], blocks.shape[:2])
        blocks[..., at : at + 2] = scale.astype("<f2")[..., None].view(np.uint8)
    if name == "MXFP4":  # from 2^-24, subnormal as f16 as its half is, to 2^-8
        blocks[..., 0] = rng.integers(104, 120, blocks.shape[:2])
    return blocks.reshape(n, -1)


def matrix(name: str, n: int, k: int) -> native.Matrix:
    return native.Matrix.pack(raw_rows(name, n, k).reshape(-1), name, n, k, POOL)


def coded(name: str, n: int, k: int) -> tuple[native.Matrix, F32]:
    """Pack a codebook type through split_codes; return the matrix and the weights it stands for."""
    rng = np.random.default_rng([n, k])
    raw = rng.integers(100, 140, (n, row_bytes(QuantType[name], k)), np.uint8)
    if name == "IQ4_NL":
        raw.reshape(n, -1, 18)[..., :2] = np.frombuffer(np.float16(2e-3).tobytes(), np.uint8)
    codes, scales = split_codes(raw, QuantType[name], k)
    return native.Matrix.pack_codes(codes, scales, POOL), dequantize(raw, QuantType[name], k)


def tolerance(w: native.Matrix, x: F32) -> F32:
    """Bound a product's rounding: one float sum over K inputs or K/32 blocks, of terms within max|w| sum|x|.

    Minima enter as sums of their own, as large as the greatest weight; 2 covers both.
    """
    terms = w.cols if w.weight_type in PLAIN else w.cols // 32 * 2
    most = np.array([np.abs(w.row(i)).max() for i in range(w.rows)])
    return (2 * (terms + 8) * ULP / 2 * np.abs(x).sum(1)[:, None] * most).astype(np.float32)


def shapes(name: str) -> list[tuple[int, int]]:
    if BLOCK.get(name) == 256:
        return [(1, 256), (17, 512), (40, 768), (16, 2304)]
    return [(1, 32), (17, 96), (33, 256), (40, 576), (16, 896)]


@pytest.mark.parametrize("name", TYPES)
def test_rows_decode_to_the_files_own_floats(name):
    for n, k in shapes(name):
        w = matrix(name, n, k)
        got = np.stack([w.row(i) for i in range(n)])
        assert same_bits(got, dequantize(raw_rows(name, n, k), QuantType[name], k))


@pytest.mark.parametrize("name", CODED)
def test_codebook_rows_decode_to_the_files_own_floats(name):
    w, weights = coded(name, 19, 96)
    got = np.stack([w.row(i) for i in range(19)])
    assert w.weight_type == "I8"
    np.testing.assert_array_equal(got, weights)  # but for the sign of zero, which codes do not keep


@every_isa
@pytest.mark.parametrize("name", TYPES)
def test_products_agree_with_reference(isa, name):
    for n, k in shapes(name):
        w, x = matrix(name, n, k), normal(k, 5, k)
        got, want = native.testing.matmul(isa, w, x), native.testing.matmul("reference", w, x)
        assert (np.abs(got - want) <= tolerance(w, x)).all(), (n, k, np.abs(got - want).max())


def test_every_value_and_every_scale_that_halves_hold_is_exact():
    """All nibbles, in both places of a byte, at all scales from 2^-24 to 2^15."""
    raw = np.zeros((40, 17), np.uint8)
    raw[:, 0] = np.arange(104, 144)
    raw[:, 1:] = np.arange(16) | np.arange(16)[::-1] << 4
    w = native.Matrix.pack(raw.reshape(-1), "MXFP4", 40, 32, POOL)
    assert w.weight_type == "MXFP4"
    np.testing.assert_array_equal([w.row(i) for i in range(40)], dequantize(raw, QuantType.MXFP4, 32))


@every_isa
@pytest.mark.parametrize("name", CODED)
def test_codebook_products_agree_with_reference(isa, name):
    w, _ = coded(name, 21, 576)
    x = normal(1, 3, 576)
    got, want = native.testing.matmul(isa, w, x), native.testing.matmul("reference", w, x)
    assert (np.abs(got - want) <= tolerance(w, x)).all()


@every_isa
@pytest.mark.parametrize("name", TYPES)
def test_no_bit_depends_on_the_tile_or_the_batch(isa, name):
    for n, k in (shapes(name)[1], shapes(name)[-1]):
        w, x = matrix(name, n, k), normal(k, 17, k)
        alone = np.concatenate([native.testing.matmul(isa, w, x[i : i + 1]) for i in range(17)])
        for rows in (*range(1, 10), 15, 17):
            assert same_bits(native.testing.matmul(isa, w, x[:rows], tile=17), alone[:rows])
        for tile in (2, 3, 5, 8):
            assert same_bits(native.testing.matmul(isa, w, x, tile=tile), alone)


@pytest.mark.parametrize("name", [*HALVES, *CODED])
def test_tables_that_multiply_otherwise_give_the_same_bits(name):
    """Tiles of AMX are exact where AVX-512's dots are, and ARM's matrix products where its dots are."""
    n, k = shapes(name)[2]
    w, x = coded(name, n, k)[0] if name in CODED else matrix(name, n, k), normal(k, 24, k)
    for pair in (("avx512", "vbmi"), ("avx512", "amx"), ("neon", "i8mm")):
        if set(pair) <= set(native.isas()):
            first, second = (native.testing.gemm(isa, w, x, 24) for isa in pair)
            assert same_bits(first, second)
            assert same_bits(native.testing.matmul(pair[0], w, x), native.testing.matmul(pair[1], w, x))


@every_isa
@pytest.mark.parametrize("name", [*HALVES, *CODED])
def test_a_prompts_bits_are_the_tiles_bits(isa, name):
    """Unpacked once for many tokens or for eight: one value, with a short last unit and any number of tokens."""
    for n, k in [*shapes(name)[1:], (24, 512)]:
        w = coded(name, n, k)[0] if name in CODED else matrix(name, n, k)
        x = normal(k, 53, k)
        want = native.testing.matmul(isa, w, x)
        for rows, tokens in [(53, 512), (53, 48), (16, 16), (17, 32), (1, 1), (31, 13)]:
            assert same_bits(native.testing.gemm(isa, w, x[:rows], tokens), want[:rows]), (n, k, rows, tokens)


@every_isa
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("code", ["greatest", "least"])
def test_extreme_codes_do_not_saturate(isa, name, code):
    """One code everywhere, and activations at both ends of int8: the largest dots there are, of either sign."""
    fill = 255 if code == "greatest" else 0
    n, k = 16, 512
    raw = raw_rows(name, n, k)
    if name not in PLAIN:
        kept = raw.reshape(n, -1, row_bytes(QuantType[name], BLOCK[name]))
        scales = [kept[..., at : at + 2].copy() for at in HALVES[name]]
        if name == "MXFP4":  # 0x7 stands for 6, whose code is the greatest, 24; 0xF for -6, whose code is 0
            kept[..., 1:] = 0x77 if fill else 0xFF
        else:
            kept[...] = fill
        for at, scale in zip(HALVES[name], scales, strict=True):
            kept[..., at : at + 2] = scale
    w = native.Matrix.pack(raw.reshape(-1), name, n, k, POOL)
    x = np.stack([np.ones(k), -np.ones(k), np.resize([1, -1], k)]).astype(np.float32)
    got, want = native.testing.matmul(isa, w, x), native.testing.matmul("reference", w, x)
    assert (np.abs(got - want) <= tolerance(w, x)).all()
    assert name in PLAIN or same_bits(native.testing.gemm(isa, w, x), got)


@every_isa
@pytest.mark.parametrize("code", [-128, 127])
def test_whole_bytes_at_both_ends_do_not_saturate(isa, code):
    """All bits set are -1 in Q8_0, not its greatest code: two products of -128 are what an int16 sum just holds."""
    n, k = 16, 512
    raw = raw_rows("Q8_0", n, k)
    raw.reshape(n, -1, 34)[..., 2:] = code % 256
    codes, scales = np.full((n, k), code, np.int8), np.full((n, k // 16), 2e-3, np.float32)
    x = np.stack([np.ones(k), -np.ones(k), np.resize([1, -1], k)]).astype(np.float32)
    held = (
        native.Matrix.pack(raw.reshape(-1), "Q8_0", n, k, POOL),
        native.Matrix.pack_codes(codes, scales, POOL),
    )
    for w in held:
        got, want = native.testing.matmul(isa, w, x), native.testing.matmul("reference", w, x)
        assert (np.abs(got - want) <= tolerance(w, x)).all()
        assert same_bits(native.testing.gemm(isa, w, x), got)


@pytest.mark.skipif("avxvnni" not in native.isas(), reason="this processor lacks AVX-VNNI")
@pytest.mark.parametrize("name", TYPES)
def test_products_of_bytes_by_vnni_are_avx2s_bits(name):
    """The two tables share all float kernels, so an answer is the same on both."""
    for n, k in shapes(name):
        w, x = matrix(name, n, k), normal(k, 19, k)
        for product in (native.testing.matmul, *([] if name in PLAIN else [native.testing.gemm])):
            assert same_bits(product("avxvnni", w, x), product("avx2", w, x)), (n, k)


@every_isa
@pytest.mark.parametrize("name", TYPES)
def test_damaged_activations_give_nan_not_garbage(isa, name):
    w, x = matrix(name, 17, 256), normal(0, 2, 256)
    x[1, 100] = np.inf if name not in PLAIN else np.nan
    got = native.testing.matmul(isa, w, x)
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).all()
