"""MXFP4 as safetensors repositories hold it: two tensors a matrix, in another order than a GGUF's."""

from __future__ import annotations

import numpy as np
import pytest

from freehold import _native as native
from freehold.base.errors import BadModelFile
from freehold.run.formats import QuantType, Tensor, dequantize
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.binder import is_microscaled, join_blocks
from freehold.run.models.packing.packer import halves_hold
from freehold.run.models.parts.moe import ExpertSizes, interleaved_blocks

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def tensor(name: str, values: np.ndarray, type: QuantType = QuantType.U8) -> Tensor:
    return Tensor(name, type, values.shape, values.reshape(-1).view(np.uint8))


def pair(*rows: int, blocks: int = 2) -> tuple[Tensor, Tensor, np.ndarray]:
    """Make nibbles and exponents; and the floats they stand for, by the specification."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (*rows, blocks, 16)).astype(np.uint8)
    scales = rng.integers(110, 130, (*rows, blocks)).astype(np.uint8)
    inputs = np.stack([VALUES[codes & 15], VALUES[codes >> 4]], -1).reshape(*rows, blocks, 32)
    floats = inputs * np.exp2(scales[..., None].astype(np.float32) - 127)
    named = tensor("w_blocks", codes), tensor("w_scales", scales)
    return *named, floats.reshape(*rows, -1).astype(np.float32)


def test_nibbles_and_exponents_become_one_matrix():
    codes, scales, floats = pair(2, 6)
    joined, notes = join_blocks(Fields({}), {"w_blocks": codes, "w_scales": scales})
    (matrix,) = joined.values()
    assert (matrix.name, matrix.type, matrix.shape, notes) == ("w_blocks", QuantType.MXFP4, (2, 6, 64), ())
    np.testing.assert_array_equal(matrix.numpy(), floats)
    np.testing.assert_array_equal(dequantize(matrix.rows, QuantType.MXFP4, 64), floats.reshape(12, 64))


def test_gates_and_ups_that_take_turns_are_told_apart():
    codes, scales, floats = pair(2, 6)
    joined, _ = join_blocks(Fields({}), {"w_blocks": codes, "w_scales": scales})
    names = interleaved_blocks("w_blocks", "d_blocks")
    for key, first in (("gate", 0), ("up", 1)):
        (cut,) = names(key, ExpertSizes(2, 3, 64))
        rows = joined["w_blocks"].rows[np.asarray(cut.rows)]
        np.testing.assert_array_equal(
            dequantize(rows, QuantType.MXFP4, 64), floats[:, first::2].reshape(6, 64)
        )


def test_panels_hold_scales_thathalves_hold_and_zeros_of_any():
    raw = np.zeros((3, 17), np.uint8)
    raw[:, 0] = 104, 143, 3  # the last block is zero
    raw[:2, 1:] = 0x72
    assert halves_hold(raw.reshape(-1))
    w = native.Matrix.pack(raw.reshape(-1), "MXFP4", 3, 32, native.Threads(1))
    np.testing.assert_array_equal([w.row(i) for i in range(3)], dequantize(raw, QuantType.MXFP4, 32))
    for far in (103, 144):
        raw[0, 0] = far
        assert not halves_hold(raw.reshape(-1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"w_scales": None}, "w_scales is missing"),
        ({"w_scales": tensor("w_scales", np.zeros((2, 6, 3), np.uint8))}, r"w_blocks needs \[2, 6, 2\]"),
        ({"w_blocks": tensor("w_blocks", np.zeros((2, 6, 2, 8), np.uint8))}, "blocks of 16 bytes"),
        (
            {"w_scales": tensor("w_scales", np.zeros((2, 6, 2), np.int8), QuantType.I8)},
            "w_scales has type I8",
        ),
    ],
)
def test_damaged_pairs_are_named(change: dict[str, Tensor | None], says: str):
    codes, scales, _ = pair(2, 6)
    held = {"w_blocks": codes, "w_scales": scales} | change
    with pytest.raises(BadModelFile, match=says):
        join_blocks(Fields({}), {name: each for name, each in held.items() if each is not None})


def test_a_repository_says_that_it_is_mxfp4():
    assert is_microscaled(Fields({"quantization_config": {"quant_method": "mxfp4"}}))
    assert not is_microscaled(Fields({"quantization_config": {"quant_method": "fp8"}}))
    assert not is_microscaled(Fields({}))
