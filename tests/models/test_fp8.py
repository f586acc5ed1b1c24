"""FP8 repositories: E4M3 codes with scales of blocks, or of a whole matrix, stand for floats exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import QuantType, Tensor
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import join_scales

CODES = np.random.default_rng(5).integers(0, 120, (6, 20), np.uint8)  # all finite


def tensor(name: str, values: np.ndarray, type: QuantType = QuantType.F32) -> Tensor:
    return Tensor(name, type, values.shape, np.ascontiguousarray(values).view(np.uint8).reshape(-1))


def config(**said: Any) -> Fields:
    return Fields({"quantization_config": {"quant_method": "fp8", **said}})


def weights(scales: np.ndarray, suffix: str = "_scale_inv") -> dict[str, Tensor]:
    return {
        "w.weight": tensor("w.weight", CODES, QuantType.F8_E4M3),
        f"w.weight{suffix}": tensor(f"w.weight{suffix}", scales.astype(np.float32)),
        "norm.weight": tensor("norm.weight", np.ones(4, np.float32)),
    }


def test_every_e4m3_code_stands_for_its_float():
    found = tensor("all", np.arange(256, dtype=np.uint8).reshape(1, 256), QuantType.F8_E4M3).numpy()[0]
    # Four bits of exponent with bias 7, three of mantissa: the least is 2^-9, the greatest 448, 7F and FF are NaN.
    assert found[[1, 7, 8, 0x38, 0x7E]].tolist() == [2.0**-9, 7 * 2.0**-9, 2.0**-6, 1.0, 448.0]
    assert np.isnan(found[[0x7F, 0xFF]]).all() and np.isfinite(np.delete(found, [0x7F, 0xFF])).all()
    assert np.array_equal(found[129:255], -found[1:127])


def test_each_block_has_its_scale_also_where_blocks_are_cut_off_at_the_edge():
    scales = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    found, notes = join_scales(config(weight_block_size=[4, 8]), weights(scales))
    assert sorted(found) == ["norm.weight", "w.weight"] and "FP8" in notes[0]
    plain = tensor("plain", CODES, QuantType.F8_E4M3).numpy()
    expected = plain * np.repeat(np.repeat(scales, 4, 0), 8, 1)[:6, :20]
    assert np.array_equal(found["w.weight"].numpy(), expected.astype(np.float32))
    assert np.array_equal(found["w.weight"].raw.view(np.float32), expected.astype(np.float32).ravel())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_may_serve_a_whole_matrix(shape: tuple[int, ...]):
    found, _ = join_scales(config(), weights(np.full(shape, 0.5), "_scale"))
    assert np.array_equal(found["w.weight"].numpy(), tensor("w", CODES, QuantType.F8_E4M3).numpy() / 2)


@pytest.mark.parametrize(
    ("said", "held", "error", "words"),
    [
        (config(), {"w.weight": weights(np.ones(()))["w.weight"]}, BadModelFile, "w.weight_scale_inv is missing"),
        (config(weight_block_size=[4, 8]), weights(np.ones((2, 2))), BadModelFile, r"_inv has shape \[2, 2\]"),
        (config(weight_block_size=[4]), weights(np.ones((2, 3))), BadModelFile, "weight_block_size is"),
        (config(quant_method="awq"), {}, UnsupportedModel, "quantization_config names 'awq'"),
        (config(fmt="e5m2"), {}, UnsupportedModel, "fmt is 'e5m2'"),
        (Fields({}), weights(np.ones(())), UnsupportedModel, "w.weight is FP8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(said: Fields, held: dict[str, Tensor], error: type, words: str):
    with pytest.raises(error, match=words):
        join_scales(said, held)
