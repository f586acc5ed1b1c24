"""Blocks that we write against ggml's own for the same floats: the same bytes on every table, by any threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile, UsageError
from freehold.run.formats import QuantType, dequantize
from tests.csrc.weight_matrices import (
    COLS,
    DIGESTS,
    F32,
    TYPES,
    U8,
    digest,
    importance,
    importances,
    matrices,
    real_rows,
)

EXPECTED = json.loads(DIGESTS.read_text(encoding="utf-8"))
MATRICES = matrices()
IMPORTANCES = importances()
IMPORTANCE = importance()
THREADS = native.Threads(1)
# Root mean square of the error over that of near-normal weights, rounded up.
ERRORS = {"F16": 0.00022, "BF16": 0.0018, "Q8_0": 0.0052, "Q6_K": 0.018, "Q5_1": 0.038, "Q5_K": 0.036}
ERRORS |= {"Q5_0": 0.041, "Q4_1": 0.076, "Q4_K": 0.071, "IQ4_NL": 0.076, "IQ4_XS": 0.077, "Q4_0": 0.083}
ERRORS |= {"Q3_K": 0.148, "Q2_K": 0.297}


def write(values: F32, type: str, weights: F32 | None = None, isa: str = "") -> U8:
    return native.quantize_rows(values, type, THREADS, importance=weights, isa=isa)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("type", TYPES)
def test_bytes_are_ggmls(type: str, isa: str):
    made = {
        name: [digest(write(m, type, given, isa)) for given in IMPORTANCES] for name, m in MATRICES.items()
    }
    assert made == {name: EXPECTED[type][name] for name in MATRICES}


@pytest.mark.model
@pytest.mark.parametrize("type", TYPES)
def test_bytes_of_real_weights_are_ggmls(type: str, model_path: Callable[[str], Path]):
    rows = real_rows(model_path("smollm2-135m"))
    assert [digest(write(rows, type, given)) for given in IMPORTANCES] == EXPECTED[type]["smollm2"]


@pytest.mark.parametrize("type", TYPES)
def test_bytes_are_libggufs_where_it_is_installed(type: str):
    libgguf = pytest.importorskip("libgguf")
    for name, values in MATRICES.items():
        theirs = libgguf.quantize_rows(values, QuantType[type].value, IMPORTANCE)
        assert np.array_equal(
            write(values, type, IMPORTANCE), theirs.view(np.uint8).reshape(len(values), -1)
        ), name


@pytest.mark.parametrize("type", TYPES)
def test_bytes_do_not_depend_on_threads_or_on_the_rows_beside(type: str):
    values = MATRICES["heavy tails"]
    many = native.quantize_rows(values, type, native.Threads(3), importance=IMPORTANCE)
    each = [native.quantize_rows(row[None], type, THREADS, importance=IMPORTANCE) for row in values]
    assert np.array_equal(many, np.concatenate(each))


@pytest.mark.parametrize("type", TYPES)
def test_what_is_written_is_read_back_with_the_types_error(type: str):
    values = MATRICES["normal"]
    found = dequantize(write(values, type), QuantType[type], COLS)
    error = np.sqrt(np.mean((found - values) ** 2) / np.mean(values**2))
    assert ERRORS[type] * 0.9 < error < ERRORS[type]


@pytest.mark.parametrize("type", [t for t in TYPES if t not in ("Q8_0", "F16", "BF16")])
def test_importance_takes_error_from_the_columns_that_count(type: str):
    values = MATRICES["normal"]
    errors = [
        float(
            ((dequantize(write(values, type, given), QuantType[type], COLS) - values) ** 2 @ IMPORTANCE).sum()
        )
        for given in (None, IMPORTANCE)
    ]
    assert errors[1] < 0.9 * errors[0]


def test_narrow_rows_are_written_where_blocks_of_32_divide_them():
    values = MATRICES["normal"].reshape(-1)[: 3 * 96].reshape(3, 96)
    assert write(values, "Q5_1").shape == (3, 72)
    assert np.array_equal(write(values, "IQ4_NL").reshape(1, -1), write(values.reshape(1, -1), "IQ4_NL"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", TYPES)
def test_a_weight_that_is_no_number_is_named_by_its_place(type: str, value: float):
    values = np.ones((3, 256), np.float32)
    values[1, 77] = value
    with pytest.raises(BadModelFile, match=f"row 1, column 77 is {value}, which {type} cannot hold"):
        write(values, type)


@pytest.mark.parametrize("value", [5e8, 1e30])
@pytest.mark.parametrize("type", [t for t in TYPES if t != "BF16"])
def test_a_weight_beyond_the_scales_reach_is_named_by_its_place(type: str, value: float):
    values = np.ones((3, 256), np.float32)
    values[2, 5] = value
    with pytest.raises(BadModelFile, match=rf"row 2, column 5 is {value:g}".replace("+", r"\+")):
        write(values, type)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_importance_that_is_no_weight_is_refused(value: float):
    weights = np.ones(256, np.float32)
    weights[9] = value
    with pytest.raises(UsageError, match="importance of column 9 is not a finite number of at least 0"):
        write(np.ones((1, 256), np.float32), "Q4_K", weights)


def test_importance_of_another_width_is_refused():
    with pytest.raises(UsageError, match="importance has 255 values for 256 columns"):
        write(np.ones((1, 256), np.float32), "Q4_K", np.ones(255, np.float32))


def test_a_type_without_a_writer_is_refused_with_those_that_have_one():
    with pytest.raises(UsageError, match="not rounded to 'IQ2_XXS'") as refused:
        write(np.ones((1, 256), np.float32), "IQ2_XXS")
    assert all(type in str(refused.value.hint) for type in TYPES)
