"""Float weights rounded when they are packed: each type's error, which matrix takes which, the same from a pack."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import freehold
from freehold import _native as native
from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats import QuantType, Tensor, dequantize, open_model_file
from freehold.run.models.binding.bind import read_source
from freehold.run.models.load import load_model
from freehold.run.models.packing.packer import round_rows, rounded_types
from tests.vectors.files import write_gguf, write_safetensors

THREADS = native.Threads(1)
IDS = [7, 70, 20, 33, 90, 121, 8, 9]
# Root mean square of the error over that of the weights, of weights as heavy in the tails as trained ones.
ERRORS = {"Q8_0": 0.0069, "Q6_K": 0.0217, "Q4_K": 0.0832}


@pytest.mark.parametrize(("type", "bound"), ERRORS.items())
def test_error_of_rounding_is_small(type: str, bound: float):
    values = (np.random.default_rng(0).standard_t(5, (64, 2048)) * 0.02).astype(np.float32)
    found = dequantize(native.quantize_rows(values, type, THREADS), QuantType[type], 2048)
    assert np.sqrt(np.mean((found - values) ** 2) / np.mean(values**2)) < bound


@pytest.mark.parametrize("type", ERRORS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-7, 6e4])
def test_rows_of_one_value_keep_it(type: str, value: float):
    values = np.full((3, 256), value, np.float32)
    found = dequantize(native.quantize_rows(values, type, THREADS), QuantType[type], 256)
    assert np.allclose(found, values, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("type", ERRORS)
def test_bytes_do_not_depend_on_threads(type: str):
    values = np.random.default_rng(1).standard_normal((33, 512)).astype(np.float32)
    few, many = (native.quantize_rows(values, type, native.Threads(n)) for n in (1, 3))
    assert np.array_equal(few, many)


@pytest.mark.parametrize("type", ERRORS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e7])
def test_values_that_a_scale_cannot_hold_are_refused_by_the_tensors_name(type: str, value: float):
    values = np.zeros((2, 256), np.float32)
    values[1, 77] = value
    tensor = Tensor("up", QuantType.F32, values.shape, values.view(np.uint8).reshape(-1))
    with pytest.raises(BadModelFile, match="tensor up holds NaN, infinity or a value beyond"):
        round_rows(tensor, type, THREADS)


@pytest.mark.parametrize("type", ERRORS)
def test_the_largest_values_stay_finite(type: str):
    values = np.linspace(-4e6, 4e6, 256, dtype=np.float32)[None]
    found = dequantize(native.quantize_rows(values, type, THREADS), QuantType[type], 256)
    assert np.abs(found - values).max() < 0.05 * 4e6


def test_rows_that_do_not_divide_into_blocks_are_a_usage_error():
    with pytest.raises(UsageError, match="rows of 96 do not divide into blocks of 256"):
        native.quantize_rows(np.zeros((1, 96), np.float32), "Q6_K", THREADS)
    with pytest.raises(UsageError, match="not rounded to 'Q8_K'"):
        native.quantize_rows(np.zeros((1, 256), np.float32), "Q8_K", THREADS)


def test_router_stays_float_and_narrow_rows_take_eight_bits(tmp_path: Path):
    with closing(open_model_file(write_safetensors("qwen3moe", tmp_path / "m"))) as opened:
        found = rounded_types(read_source(opened), "q4")
    assert not any(name.endswith("mlp.gate.weight") for name in found)
    assert set(found.values()) == {"Q8_0"} and "model.embed_tokens.weight" in found


def test_rounded_model_is_smaller_and_the_same_from_its_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    folder = str(write_safetensors("qwen3", tmp_path / "tiny"))
    freehold.pull(folder, quant="none")
    with freehold.load("tiny", context=64, threads=1) as plain:
        exact, size = plain.score(IDS), plain._engine.model.nbytes
    freehold.pull(folder, quant="q8")
    answers = []
    for _ in range(2):  # packed, then mapped
        with freehold.load("tiny", context=64, threads=1) as rounded:
            assert rounded._engine.model.nbytes < size / 3
            answers.append(rounded.score(IDS))
    assert np.array_equal(*answers) and not np.array_equal(answers[0], exact)
    assert np.abs(answers[0] - exact).max() < 0.5


def test_gguf_is_not_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    path = write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0")
    with pytest.raises(UsageError, match="is a GGUF file"):
        freehold.pull(str(path), quant="q4")
    with pytest.raises(UnsupportedModel, match="holds no float matrices"):
        load_model(path, threads=1, rounding="q4")
