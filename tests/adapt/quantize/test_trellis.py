"""Encoding by moments: errors cancel where inputs go together, whatever the moments lack."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.quantize.calibration import CalibratedLayer, LayerMatrix, Moments
from freehold.adapt.quantize.encoding import BLOCK, encode, feedback
from freehold.adapt.quantize.quantising import choose_damping
from freehold.base.errors import BadModelFile

F32 = np.float32


def inputs(rows: int, columns: int, rank: int, seed: int = 1) -> np.ndarray:
    """Inputs that go together: a few causes, and noise of each column's own."""
    draw = np.random.default_rng(seed)
    causes = draw.standard_normal((rows, rank)) @ draw.standard_normal((rank, columns))
    return (causes + 0.5 * draw.standard_normal((rows, columns))).astype(F32)


def moments(x: np.ndarray) -> NDArray[np.float32]:
    return np.asarray(x.T @ x / len(x), F32)


def output_error(values: np.ndarray, weights: np.ndarray, x: np.ndarray) -> float:
    return float(np.square(x @ (values - weights).T).mean() / np.square(x @ weights.T).mean())


def test_factors_multiply_to_the_moments_again():
    x = inputs(2000, 64, 8)
    h = moments(x)
    fed = feedback([h], 0.0, BLOCK)
    whole = fed.push.astype(np.float64) + np.eye(64)
    for first in range(0, 64, BLOCK):
        assert not np.any(fed.push[first:, first : first + BLOCK])
    seen = h.astype(np.float64) + 0.01 * np.trace(h) / 64 * np.eye(64)
    core = np.linalg.solve(whole, np.linalg.solve(whole, seen).T)
    ahead = np.triu(np.abs(core), BLOCK)
    assert ahead.max() < 1e-3 * np.abs(core).max()
    assert np.allclose(np.diag(core) / np.diag(core).mean(), fed.importance, rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 3])
def test_feedback_takes_most_of_the_error_from_outputs(bits):
    weights, x = np.random.default_rng(2).standard_normal((70, 256)).astype(F32), inputs(4000, 256, 24)
    h = moments(x)
    threads = native.Threads(1)
    plain, fed = encode(weights, None, bits, threads), encode(weights, feedback([h]), bits, threads)
    assert output_error(fed.values, weights, x) < 0.3 * output_error(plain.values, weights, x)
    halves = encode(weights, feedback([h[:128, :128].copy(), h[128:, 128:].copy()]), bits, threads)
    assert output_error(halves.values, weights, x) < 0.6 * output_error(plain.values, weights, x)


def test_inputs_that_calibration_never_saw_are_still_encoded():
    weights = np.random.default_rng(2).standard_normal((3, 96)).astype(F32)
    h = moments(np.zeros((1, 96), F32))
    h[:5, :5] = 1
    made = encode(weights, feedback([h]), 3, native.Threads(1))
    assert np.square(made.values[:, 5:] - weights[:, 5:]).mean() < 0.05
    assert np.isfinite(encode(weights, feedback([h * 0]), 3, native.Threads(1)).values).all()


def test_moments_that_are_not_finite_are_named_as_the_models_fault():
    h = np.eye(64, dtype=F32)
    h[3, 3] = np.nan
    with pytest.raises(BadModelFile, match="calibrated on"):
        feedback([h])


def test_a_tensors_bytes_begin_with_its_table():
    made = encode(np.ones((2, 64), F32), None, 2, native.Threads(1))
    assert made.type == "T2" and len(made.raw) == 128 + made.rows.size
    assert np.array_equal(made.raw[:128].view(np.int8), made.table)


@pytest.mark.heavy
def test_damping_is_chosen_on_texts_that_moments_are_not_of():
    """Few texts for many inputs: the moments fit them, and only damping helps on others."""
    weights = np.random.default_rng(2).standard_normal((70, 256)).astype(F32)
    few, other = Moments.of_width(256), Moments.of_width(256)
    few.add(inputs(40, 256, 24))
    other.add(inputs(400, 256, 24)[40:])
    matrix = LayerMatrix(cast(Any, SimpleNamespace(name="one")))
    matrix.hold(weights)
    layer = CalibratedLayer(0, {"one": few}, {"one": other}, {"one": matrix})
    errors = choose_damping(layer, 3, native.Threads(1))
    assert min(errors, key=errors.__getitem__) >= 0.1
    assert errors[0.01] > 1.05 * min(errors.values())


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named_not_rounded(bits: int, value: float):
    """The encoder's comparisons with NaN are all false: a damaged tensor became a sound one of other numbers."""
    weights = np.ones((3, 64), np.float32)
    weights[1, 5] = value
    with pytest.raises(BadModelFile, match=f"row 1, column 5 is {value}, which T{bits} cannot hold"):
        encode(weights, None, bits, native.Threads(1))
