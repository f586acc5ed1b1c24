"""A declared weight that is part of a stored tensor: rows of any type, functions of floats alone."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import QuantType, Tensor
from freehold.run.models.binding.binder import Binder
from freehold.run.models.family import Cut, matrix, vector


def stored(name: str, values: np.ndarray) -> Tensor:
    return Tensor(
        name, QuantType.F32, values.shape, np.ascontiguousarray(values, np.float32).view(np.uint8).ravel()
    )


def q8(name: str, rows: int) -> Tensor:
    raw = np.random.default_rng(1).integers(0, 60, rows * 34, np.uint8)
    return Tensor(name, QuantType.Q8_0, (rows, 32), raw)


def test_rows_of_a_fused_matrix_are_cut_in_the_named_order_whatever_its_type():
    fused = q8("blk.0.fused.weight", 6)
    specs = {
        "gate": matrix(Cut("fused.weight", (6, 32), rows=range(3)), None, 3, 32),
        "up": matrix(Cut("fused.weight", (6, 32), rows=np.array([5, 3, 4])), None, 3, 32),
    }
    binder = Binder({fused.name: fused}, "blk")
    found = binder.take(specs, 0)
    binder.refuse_rest()
    assert np.array_equal(found["gate"].tensor.numpy(), fused.numpy()[:3])
    assert np.array_equal(found["up"].tensor.rows, fused.rows[[5, 3, 4]])
    assert found["gate"].tensor.name != found["up"].tensor.name


def test_elements_of_a_fused_bias_are_cut():
    bias = stored("blk.0.fused.bias", np.arange(6))
    found = Binder({bias.name: bias}, "blk").take(
        {"b": vector(Cut("fused.bias", (6,), rows=range(2, 4)), None, 2)}, 0
    )
    assert found["b"].tensor.numpy().tolist() == [2, 3]


def test_function_of_a_stored_tensor_makes_the_declared_form():
    decay = stored("model.layers.0.A_log", np.array([0.0, 1.0]))
    spec = vector("ssm_a", Cut("A_log", (2,), take=lambda a: -np.exp(a)), 2)
    found = Binder({decay.name: decay}, "model.layers").take({"a": spec}, 0)
    assert np.allclose(found["a"].tensor.numpy(), [-1.0, -np.e])


def test_function_of_a_quantised_tensor_is_refused_by_name():
    spec = matrix(Cut("w.weight", (4, 32), take=np.negative), None, 4, 32)
    with pytest.raises(UnsupportedModel, match=r"tensor blk\.0\.w\.weight has type Q8_0"):
        Binder({"blk.0.w.weight": q8("blk.0.w.weight", 4)}, "blk").take({"w": spec}, 0)


def test_cut_of_a_tensor_of_another_shape_is_refused_by_name():
    spec = matrix(Cut("w.weight", (8, 32), rows=range(4)), None, 4, 32)
    with pytest.raises(
        BadModelFile, match=r"tensor blk\.0\.w\.weight has shape \[4, 32\]; the config asks for \[8, 32\]"
    ):
        Binder({"blk.0.w.weight": q8("blk.0.w.weight", 4)}, "blk").take({"w": spec}, 0)


def joined(*rows: int, type: QuantType = QuantType.Q8_0) -> Binder:
    tensors = {f"blk.0.{n}.weight": q8(f"blk.0.{n}.weight", r) for n, r in zip("qkv", rows, strict=True)}
    if type is QuantType.F32:
        tensors["blk.0.v.weight"] = stored("blk.0.v.weight", np.ones((rows[2], 32)))
    return Binder(tensors, "blk")


JOINED = {"qkv": matrix(Cut(("q.weight", "k.weight", "v.weight"), (9, 32), rows=range(9)), None, 9, 32)}


@pytest.mark.parametrize("rows", [(2, 3, 4), (3, 3, 3)])
def test_tensors_that_one_weight_is_apart_in_are_joined_however_their_rows_are_divided(rows):
    binder = joined(*rows)
    found = binder.take(JOINED, 0)["qkv"].tensor
    binder.refuse_rest()
    assert found.rows.shape == (9, 34) and np.array_equal(found.rows[: rows[0]], q8("q", rows[0]).rows)


def test_tensors_to_join_of_other_rows_or_types_are_refused_by_name():
    with pytest.raises(BadModelFile, match=r"has shape \[8, 32\]; the config asks for \[9, 32\]"):
        joined(2, 2, 4).take(JOINED, 0)
    with pytest.raises(
        UnsupportedModel, match=r"tensor blk\.0\.v\.weight has type F32; blk\.0\.q\.weight has Q8_0"
    ):
        joined(2, 3, 4, type=QuantType.F32).take(JOINED, 0)
    with pytest.raises(BadModelFile, match=r"tensor blk\.0\.k\.weight is missing"):
        Binder({"blk.0.q.weight": q8("blk.0.q.weight", 9)}, "blk").take(JOINED, 0)
