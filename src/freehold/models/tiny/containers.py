"""Writes safetensors and GGUF files: names, shapes and bytes into the containers' layouts.

Knows the two containers; knows no model. Small files only: everything is joined in memory.
Path: make.write_safetensors, make.write_gguf -> containers
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.formats import QuantType

_ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # GGUF's value types
_SCALARS = {_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}
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
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(_text(key) + _typed(value) for key, value in keys.items())
    data = bytearray()
    for name, (kind, shape, raw) in tensors.items():
        turned = shape[::-1]  # a GGUF states the fastest dimension first
        head += _text(name) + struct.pack(f"<I{len(turned)}Q", len(turned), *turned)
        head += struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % _ALIGNMENT)
    return head + bytes(-len(head) % _ALIGNMENT) + bytes(data)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    """Encode a value after its type: JSON's types become the nearest of a GGUF's, integers of 32 bits."""
    if not isinstance(value, list):
        kind = _kind(value)
        return struct.pack("<I", kind) + _plain(kind, value)
    kind = max(map(_kind, value), default=_I32)
    kind = _I32 if kind == _U32 else kind  # as llama.cpp writes lists of integers
    items = b"".join(_plain(kind, item) for item in value)
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, str):
        return _STRING
    if isinstance(value, float):
        return _F32
    return _U32 if value >= 0 else _I32


def _plain(kind: int, value: Any) -> bytes:
    return _text(value) if kind == _STRING else struct.pack(_SCALARS[kind], value)
