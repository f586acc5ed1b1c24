"""Repositories whose weights are FP8: codes and their scales become one matrix each.

Knows config.json's `quantization_config` and the names of scales; knows no family.
Source: the E4M3 format of arXiv 2209.05433, with the 128 x 128 block scales of DeepSeek-V3 (arXiv 2412.19437).
Path: bind.read_source -> join_scales -> ScaledBlocks
"""

from __future__ import annotations

from collections.abc import Mapping

from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats import QuantType, Tensor
from freehold.formats.fields import MAX_WIDTH, Fields
from freehold.models.binding.stored import Held, ScaledBlocks

_SCALES = ("_scale_inv", "_scale")  # both multiply; the first name is DeepSeek's
_ACTIVATIONS = ("activation_scale", "input_scale")


def join_scales(config: Fields, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Held], tuple[str, ...]]:
    """Return the tensors with FP8 codes joined to their scales, and what the user should know.

    Raises UnsupportedModel for another way of quantising, BadModelFile for codes without scales, or with others.
    """
    quantisation = config.section("quantization_config")
    block, notes = None, ()
    if quantisation is not None:
        block = _block(quantisation)
        notes = (
            "its FP8 weights are computed as the floats they stand for; activations are not rounded to FP8",
        )
    out: dict[str, Held] = {}
    taken = {name for name in tensors if quantisation is not None and name.endswith(_ACTIVATIONS)}
    for name, tensor in tensors.items():
        if tensor.type is not QuantType.F8_E4M3:
            continue
        if quantisation is None:
            raise UnsupportedModel(
                f"tensor {name} is FP8, and config.json has no quantization_config to read it by"
            )
        scale = next((s for s in (name + end for end in _SCALES) if s in tensors), None)
        if scale is None:
            raise BadModelFile(f"tensor {name}{_SCALES[0]} is missing: the scales of {name}")
        out[name] = _joined(tensor, tensors[scale], block)
        taken.add(scale)
    return {n: out.get(n, t) for n, t in tensors.items() if n not in taken}, notes


def _block(quantisation: Fields) -> tuple[int, int] | None:
    """Return the rows and columns that share a scale; None where a matrix has one scale."""
    if (method := quantisation.text("quant_method", "unknown")) != "fp8":
        raise UnsupportedModel(
            f"quantization_config names {method!r}: of quantised safetensors, only fp8 and mxfp4 are supported",
            "fetch a GGUF of the model, or its unquantised repository with --quant q8, q6 or q4",
        )
    quantisation.require("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    size = quantisation.get("weight_block_size")
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(n) is int and 0 < n <= MAX_WIDTH for n in size)
    ):
        raise BadModelFile(f"weight_block_size is {str(size)[:60]}; expected two counts")
    return size[0], size[1]


def _joined(codes: Tensor, scales: Tensor, block: tuple[int, int] | None) -> ScaledBlocks:
    if len(codes.shape) != 2:
        raise UnsupportedModel(
            f"tensor {codes.name} is FP8 of {len(codes.shape)} dimensions; matrices have two"
        )
    if scales.type not in (QuantType.F32, QuantType.F16, QuantType.BF16):
        raise UnsupportedModel(f"tensor {scales.name} has type {scales.type.name}; scales are floats")
    rows, columns = block or codes.shape
    expected = [-(-codes.shape[0] // rows), -(-codes.shape[1] // columns)]
    if list(scales.shape) != expected and not (block is None and scales.shape in ((), (1,))):
        raise BadModelFile(
            f"tensor {scales.name} has shape {list(scales.shape)}; {codes.name} needs {expected}"
        )
    return ScaledBlocks(codes, scales, (rows, columns))
