"""Writes safetensors and GGUF files: names, shapes and bytes into the containers' layouts.

Knows the two containers; knows no model. Small files only: everything is joined in memory.
Path: make.write_safetensors, make.write_gguf -> containers
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.formats import QuantType
from freehold.formats.gguf import DEFAULT_ALIGNMENT
from freehold.formats.gguf_writer import TensorPlan, gguf_header

_SAFETENSORS = {"F32": "<f4", "F16": "<f2"}

# --- safetensors ---------------------------------------------------------------------------------------


def safetensors_bytes(tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> bytes:
    """Join float tensors into a safetensors file of type F32, F16 or BF16 (cut off, so exact on BF16's grid)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, value in tensors.items():
        raw = _floats(value, dtype)
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _floats(value: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":
        return (value.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
    return value.astype(_SAFETENSORS[dtype]).tobytes()


# --- GGUF ------------------------------------------------------------------------------------------------


def gguf_bytes(
    keys: Mapping[str, Any], tensors: Mapping[str, tuple[QuantType, tuple[int, ...], bytes]]
) -> bytes:
    """Join keys and tensors, each its type, shape (rows first) and bytes, into a GGUF of version 3."""
    plans = [TensorPlan(name, kind, shape) for name, (kind, shape, _) in tensors.items()]
    padded = (raw + bytes(-len(raw) % DEFAULT_ALIGNMENT) for _, _, raw in tensors.values())
    return gguf_header(keys, plans) + b"".join(padded)
