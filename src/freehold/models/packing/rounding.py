"""Which weight type each float matrix is rounded to when it is packed: `freehold pull org/repo --quant q6`.

Knows declared weights and the types that native.quantize_rows makes; knows no store. What is quantised in the file
stays as it is, and so does what is computed in floats (routers). A matrix whose rows do not divide into blocks of 256
takes Q8_0, whose blocks are of 32.
Path: load.load_model -> rounded_types, round_rows -> native.quantize_rows -> panels
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats import dequantize
from freehold.models.binding.bind import Source
from freehold.models.binding.binder import FLOATS
from freehold.models.binding.stored import Stored, Taken

Rounding: TypeAlias = Literal["q8", "q6", "q4"]
ROUNDINGS: dict[Rounding, str] = {"q8": "Q8_0", "q6": "Q6_K", "q4": "Q4_K"}
# Under q4 these take six bits, as in llama.cpp's Q4_K_M: errors of values and of an MLP's output go into the residual
# stream at full size, and the head's move every logit.
FINER = frozenset({"v", "down", "shared_down", "head", "embed"})
FINER_TYPE = "Q6_K"
WIDE_BLOCK, NARROW_BLOCK = 256, 32
BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q4_K": 4.5}
LEAVE_OUT = "freehold pull MODEL --quant none takes the wish back"
_SLAB = 1 << 24  # values decoded at once
_GREATEST = 4_000_000  # Q4_K's minima are at most 63 float16s: beyond 63 * 65,504 a block becomes infinite


def rounded_types(source: Source, rounding: Rounding) -> dict[str, str]:
    """Return the type of each matrix that is rounded, by tensor name. Raises UnsupportedModel where there is none."""
    if source.family.encoder:
        raise UnsupportedModel(
            f"{source.name} is an embedding model, which keeps its float weights", "leave out --quant"
        )
    rounded: dict[str, str] = {}
    for key, (spec, tensor) in source.matrices_by_key():
        if spec.floats or tensor.type not in FLOATS:
            continue
        type = FINER_TYPE if rounding == "q4" and key in FINER else ROUNDINGS[rounding]
        type = type if tensor.shape[-1] % WIDE_BLOCK == 0 else ROUNDINGS["q8"]
        if tensor.shape[-1] % NARROW_BLOCK == 0:
            rounded[tensor.name] = max(type, rounded.get(tensor.name, type), key=BITS.__getitem__)
    if not rounded:
        raise UnsupportedModel(
            f"{source.name} holds no float matrices; its weights are quantised", "leave out --quant"
        )
    return rounded


def round_rows(tensor: Stored, type: str, threads: native.Threads) -> NDArray[np.uint8]:
    """Return a matrix's rows as bytes of `type`, uint8 [N, row bytes]. Raises BadModelFile for what does not fit it."""
    parts = []
    for values in _slabs(tensor):
        if not (np.abs(values) <= _GREATEST).all():  # False for NaN
            raise BadModelFile(
                f"tensor {tensor.name} holds NaN, infinity or a value beyond {_GREATEST:,}",
                "it is damaged; fetch the model again",
            )
        parts.append(native.quantize_rows(values, type, threads))
    return np.concatenate(parts)


def _slabs(tensor: Stored) -> Iterator[NDArray[np.float32]]:
    """Yield a matrix's values, some rows at a time, so that a large one takes little memory."""
    k = tensor.shape[-1]
    if isinstance(tensor, Taken):
        yield tensor.numpy().reshape(-1, k)
        return
    rows, step = tensor.rows, max(_SLAB // k, 1)
    for first in range(0, len(rows), step):
        yield dequantize(rows[first : first + step], tensor.type, k)
