"""Rows unpacked by the native module are those that formats.dequantize gives, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile, UsageError
from freehold.run.formats import QuantType, dequantize
from freehold.run.formats.weight_types import TABLE_TYPES, row_bytes

TYPES = [t for t in QuantType if native.unpacks(t.name)]
ROWS, COLUMNS = 37, 512
TABLE = np.random.default_rng(7).integers(-127, 128, 128).astype(np.int8)
POOL = native.Threads(2)


def rows_of(type: QuantType) -> np.ndarray:
    """Draw bytes: every code, and scales of both signs, infinities and NaN among them."""
    drawn = np.random.default_rng(type).integers(0, 256, (ROWS, row_bytes(type, COLUMNS)), dtype=np.uint8)
    return drawn.view(np.uint8)


def tensor_of(type: QuantType, rows: np.ndarray) -> np.ndarray:
    """The rows' bytes as a tensor has them: T2 and T3 after their table."""
    return (
        rows.reshape(-1)
        if type not in TABLE_TYPES
        else np.concatenate([TABLE.view(np.uint8), rows.reshape(-1)])
    )


def decoded(type: QuantType, rows: np.ndarray) -> np.ndarray:
    return dequantize(rows, type, COLUMNS, TABLE if type in TABLE_TYPES else None)


def test_types_of_the_catalogues_files_unpack():
    named = {t.name for t in TYPES}
    assert named >= {
        "F32",
        "F16",
        "BF16",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "T2",
        "T3",
    }


@pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
def test_unpacked_rows_are_dequantized_rows(type: QuantType):
    raw, out = rows_of(type), np.empty((ROWS, COLUMNS), np.float32)
    native.unpack(tensor_of(type, raw), type.name, out, POOL)
    assert np.array_equal(out, decoded(type, raw), equal_nan=True)


@pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
def test_halves_are_the_nearest_bfloat16(type: QuantType):
    raw, out = rows_of(type), np.empty((ROWS, COLUMNS), np.uint16)
    native.unpack_half(tensor_of(type, raw), type.name, out, POOL)
    exact = decoded(type, raw)
    halves = (out.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(np.isnan(halves), np.isnan(exact))
    finite = np.isfinite(exact) & (np.abs(exact) < 3e38) & (np.abs(exact) > 1e-30)
    ulp = np.exp2(np.floor(np.log2(np.abs(exact[finite]))) - 7)
    assert (np.abs(halves[finite].astype(np.float64) - exact[finite]) <= ulp / 2).all()


def test_bytes_that_are_not_rows_are_refused():
    with pytest.raises(BadModelFile, match="Q8_0 rows, 2 of 64, do not take 135 bytes"):
        native.unpack(np.zeros(135, np.uint8), "Q8_0", np.empty((2, 64), np.float32), POOL)
    with pytest.raises(UsageError, match="are not unpacked here"):
        native.unpack(np.zeros(66, np.uint8), "IQ2_XXS", np.empty((1, 256), np.float32), POOL)
