"""The type that a float tensor of safetensors is rounded to when it is packed, by `freehold pull --quant`.

The rule of the engine's packer as far as bytes depend on it, by a tensor's name and shape; imports none of it, and a
test holds the two together. Where a file holds several matrices as one, they count as one type.
Path: file_anatomy.from_file -> rounded_type
"""

from __future__ import annotations

from freehold.catalog import quants

ROUNDINGS = {"q8": "Q8_0", "q6": "Q6_K", "q4": "Q4_K"}  # of most matrices
_FLOATS = ("BF16", "F16", "F32")
_FINER = "Q6_K"  # what q4 makes of values, of MLPs' outputs, of the head and of the embedding
_FINER_NAMES = ("v_proj", "down_proj", "w2", "fc2", "lm_head", "embed_tokens", "embeddings", "output_linear")
_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight")  # which are computed in floats
_BLOCKS = {"Q8_0": 32}  # inputs of a block; of others 256


def rounded_type(name: str, type: str, shape: tuple[int, ...], rounding: str) -> str:
    """Return a tensor's type after the rounding; its own where that leaves it as it is."""
    if rounding not in ROUNDINGS or type not in _FLOATS or len(shape) < 2 or name.endswith(_ROUTERS):
        return type
    finer = rounding == "q4" and any(part in _FINER_NAMES for part in name.split("."))
    wanted = _FINER if finer else ROUNDINGS[rounding]
    for candidate in (wanted, "Q8_0"):
        if shape[-1] % _BLOCKS.get(candidate, 256) == 0:
            return candidate
    return type


def stored_bytes(weights: float, type: str) -> float:
    """Return the bytes of `weights` weights of a type."""
    return weights * quants.bits(type) / 8
