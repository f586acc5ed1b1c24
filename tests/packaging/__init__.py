"""Tests of the native module: every kernel table that runs here against csrc/kernels/reference.cpp."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

ULP = 2.0**-23
"""The step between float32 values at 1; a rounding errs by half of it, relative to the result."""


def normal(seed: int, *shape: int) -> F32:
    """Draw standard normal float32 values, the same for the same arguments."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def same_bits(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> bool:
    """Tell whether two arrays hold the same bytes: equal signs of zero, equal NaNs."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
