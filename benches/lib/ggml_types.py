"""ggml's own quantisers by ctypes: a matrix to one of its types and back to floats.

Takes a libggml.so that has them (ik_llama.cpp's knows more types than the mainline's) and the header beside it, which
has the types' numbers. Rows that blocks of 256 do not divide are joined, which no file allows: that is good for
comparisons alone.
Knows no model. Path: benches/adapt/gate.py -> Ggml.rounded
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np

_BLOCK = 256
_READERS = {"Q2_K": "q2_K", "Q3_K": "q3_K", "Q4_K": "q4_K"}  # others are their names in lower case


class _Params(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The quantisers of one library."""

    def __init__(self, library: Path) -> None:
        for companion in sorted(library.parent.parent.glob("*.libs/*gomp*")):
            ctypes.CDLL(str(companion), mode=ctypes.RTLD_GLOBAL)
        self._lib = ctypes.CDLL(str(library))
        header = (library.parent.parent / "include" / "ggml.h").read_text(encoding="utf-8")
        self._types = {name: int(n) for name, n in re.findall(r"GGML_TYPE_(\w+)\s*=\s*(\d+)", header)}
        self._lib.ggml_init.argtypes, self._lib.ggml_init.restype = [_Params], ctypes.c_void_p
        self._lib.ggml_init(_Params(1 << 20, None, True))  # without it the tables of float16 are zeros
        self._lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._lib.ggml_row_size.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            pointer,
            pointer,
            count,
            count,
            count,
            pointer,
        ]
        self._lib.ggml_quantize_chunk.restype = ctypes.c_size_t

    def rounded(self, name: str, weights: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, float]:
        """Return what float32 [N, K] becomes in a type, with its inputs' `importance` [K], and its bits per weight."""
        n, k = weights.shape
        joined = next(m for m in range(1, _BLOCK + 1) if k * m % _BLOCK == 0)
        rows = np.ascontiguousarray(weights, np.float32).reshape(n // joined, k * joined)
        weighed = np.ascontiguousarray(np.tile(np.asarray(importance, np.float32), joined))
        type_ = self._types[name]
        bytes_ = self._lib.ggml_row_size(type_, rows.shape[1])
        packed, values = np.zeros(len(rows) * bytes_, np.uint8), np.empty_like(rows)
        self._lib.ggml_quantize_chunk(
            type_, rows.ctypes.data, packed.ctypes.data, 0, len(rows), rows.shape[1], weighed.ctypes.data
        )
        read = getattr(self._lib, f"dequantize_row_{_READERS.get(name, name.lower())}")
        read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        for i in range(len(rows)):
            read(packed.ctypes.data + i * bytes_, values.ctypes.data + i * values.strides[0], rows.shape[1])
        return values.reshape(n, k), packed.nbytes * 8 / weights.size
