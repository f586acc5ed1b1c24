"""Ten matrices and their importance, made from integers alone, so that every machine and NumPy makes the same floats.

Run: python -m tests.csrc.weight_matrices LIBGGML [SMOLLM2.gguf] writes ggml_blocks.json, the digests of what ggml's own
`ggml_quantize_chunk` makes of them. LIBGGML is a libggml-base.so built for any x86-64, without fused multiply-adds, as
llama.cpp's releases and the llama-cpp-python wheel have it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.run.formats import QuantType, open_model_file, row_bytes

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
ROWS, COLS = (
    5,
    768,
)  # fifteen blocks of 256, so that a tile of sixteen is not full; rows end inside tiles of 32s
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
TYPES += ("F16", "BF16")
DIGESTS = Path(__file__).with_name("ggml_blocks.json")
REAL_TENSOR, REAL_ROWS = "blk.12.ffn_up.weight", 20  # twenty rows of 576 are fifteen of 768


def bell(seed: int) -> NDArray[np.float64]:
    """Return a sum of eight uniform integers: near normal, standard deviation 0.82, in steps of 2^-20."""
    draws = np.random.default_rng(seed).integers(-(1 << 19), 1 << 19, (8, ROWS, COLS))
    return draws.sum(axis=0) / (1 << 20)


def _with(values: NDArray[np.float64], change: Callable[[NDArray[np.float64]], None]) -> NDArray[np.float64]:
    change(values)
    return values


def _empty(values: NDArray[np.float64]) -> None:
    values[::2] = 0
    values[1, :300] = 0
    values[3, 256:272] = -0.0


def _outlier(values: NDArray[np.float64]) -> None:
    values[:, 5] = 300
    values[2, -5] = -30000


def _constant(values: NDArray[np.float64]) -> None:
    values[0] = 0.375
    values[1] = -1.5
    values[2] = np.abs(values[2])
    values[3] = -np.abs(values[3]) - 1


def matrices() -> dict[str, F32]:
    """Return the ten matrices, float32 [5, 768] each."""
    exponents = np.random.default_rng(9).integers(-20, 4, (ROWS, COLS))
    found = {
        "normal": bell(0) / 64,
        "heavy tails": bell(1) ** 3 / 8,
        "zeros": _with(bell(2), _empty),
        "denormal": np.ldexp(bell(3), -134),
        "below the smallest scale": np.ldexp(bell(4), -50),
        "large": bell(5) * 8000,
        "one outlier": _with(bell(6) / 64, _outlier),
        "on a grid": np.round(bell(7) * 6) / 16,
        "one sign and constant": _with(bell(8), _constant),
        "of every size": np.ldexp(bell(9), exponents),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


def importance() -> F32:
    """Return weights of the columns over six orders of magnitude; those of a sixteenth are zero."""
    rng = np.random.default_rng(10)
    sizes = np.ldexp(rng.integers(1 << 10, 1 << 11, COLS) / (1 << 10), rng.integers(-10, 10, COLS))
    sizes[rng.integers(0, 16, COLS) == 0] = 0
    return sizes.astype(np.float32)


def sparse_importance() -> F32:
    """Return weights that are mostly zero, the rest over a hundred powers of two: scales turn negative or vanish."""
    rng = np.random.default_rng(11)
    sizes = np.ldexp(1.0, rng.integers(-90, 20, COLS))
    return np.where(rng.integers(0, 5, COLS) == 0, sizes, 0).astype(np.float32)


def importances() -> tuple[F32 | None, ...]:
    """Return what each matrix is written with, in the digests' order."""
    return None, importance(), sparse_importance()


def real_rows(path: Path) -> F32:
    """Return some rows of smollm2:135m, joined to a width that blocks of 256 divide."""
    with open_model_file(path) as file:
        tensor = file.tensors[REAL_TENSOR]
        return np.ascontiguousarray(tensor.numpy()[:REAL_ROWS]).reshape(-1, COLS)


def digest(blocks: U8) -> str:
    return hashlib.sha256(blocks.tobytes()).hexdigest()[:16]


class Ggml:
    """ggml's own quantisers, out of a library file."""

    def __init__(self, library: str) -> None:
        self._lib = ctypes.CDLL(library)
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        self._lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self._lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            pointer,
            pointer,
            number,
            number,
            number,
            pointer,
        ]

    def quantize(self, values: F32, type: str, weights: F32 | None) -> U8:
        rows, cols = values.shape
        out = np.zeros((rows, row_bytes(QuantType[type], cols)), np.uint8)
        given = weights.ctypes.data if weights is not None else None
        self._lib.ggml_quantize_chunk(
            QuantType[type].value, values.ctypes.data, out.ctypes.data, 0, rows, cols, given
        )
        return out


def main(library: str, model: str) -> None:
    """Write the digests of each matrix with each importance."""
    ggml = Ggml(library)
    cases = {**matrices(), "smollm2": real_rows(Path(model))}
    digests = {
        type: {
            name: [digest(ggml.quantize(m, type, given)) for given in importances()]
            for name, m in cases.items()
        }
        for type in TYPES
    }
    DIGESTS.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
