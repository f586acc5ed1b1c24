"""Repositories whose experts are MXFP4: nibbles and exponents, two tensors, become one matrix each.

Knows config.json's `quantization_config` and the names of the two; knows no family.
Source: the OCP microscaling formats specification 1.0 (2023), as gpt-oss's repositories hold them.
Path: bind.read_source -> join_blocks -> MicroscaledBlocks
"""

from __future__ import annotations

from collections.abc import Mapping

from freehold.errors import BadModelFile
from freehold.formats import QuantType, Tensor
from freehold.formats.fields import Fields
from freehold.models.binding.stored import Held, MicroscaledBlocks

_BLOCKS, _SCALES = "_blocks", "_scales"


def is_microscaled(config: Fields) -> bool:
    """Whether a config.json says that its matrices are MXFP4."""
    quantisation = config.section("quantization_config")
    return quantisation is not None and quantisation.get("quant_method") == "mxfp4"


def join_blocks(config: Fields, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Held], tuple[str, ...]]:
    """Return the tensors with nibbles joined to their exponents, under the nibbles' names, and no notes.

    Raises BadModelFile for nibbles without exponents, or with others.
    """
    out: dict[str, Held] = {}
    for name, tensor in tensors.items():
        if name.endswith(_BLOCKS):
            out[name] = _joined(tensor, tensors.get(name.removesuffix(_BLOCKS) + _SCALES))
        elif not (name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in tensors):
            out[name] = tensor
    return out, ()


def _joined(codes: Tensor, scales: Tensor | None) -> MicroscaledBlocks:
    if scales is None:
        raise BadModelFile(f"tensor {codes.name.removesuffix(_BLOCKS)}{_SCALES} is missing")
    for each in (codes, scales):
        if each.type is not QuantType.U8:
            raise BadModelFile(f"tensor {each.name} has type {each.type.name}; MXFP4 is bytes")
    if len(codes.shape) < 3 or codes.shape[-1] != 16:
        raise BadModelFile(f"tensor {codes.name} has shape {list(codes.shape)}; MXFP4 has blocks of 16 bytes")
    if scales.shape != codes.shape[:-1]:
        raise BadModelFile(
            f"tensor {scales.name} has shape {list(scales.shape)}; {codes.name} needs {list(codes.shape[:-1])}"
        )
    return MicroscaledBlocks(codes, scales)
