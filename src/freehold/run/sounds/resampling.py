"""Samples of any rate become samples of another, by a filter of fixed length: the same bits on every machine.

Each output sample is a sum over the input within ZEROS crossings of a sinc on both sides, under Kaiser's window. Sums
are in float64 and in the order of the samples, so no library's order of adding shows.
Source: J. O. Smith, Digital Audio Resampling (ccrma.stanford.edu/~jos/resample), for the method.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

ZEROS = 24  # crossings on each side
BETA = 9.0  # of Kaiser's window: 90 dB below
PASSED = 0.945  # of the lower of both Nyquist rates
BLOCK = 1 << 15  # output samples that are computed at a time


def resampled(samples: F32, rate: int, to: int) -> F32:
    """Return samples, float32 [n], at another rate: float32 [ceil(n * to / rate)]."""
    if rate == to or not len(samples):
        return samples
    shared = math.gcd(rate, to)
    up, down = to // shared, rate // shared
    kernels, reach = _kernels(up, down)
    count = -(-len(samples) * up // down)
    last = (count - 1) * down // up
    padded = np.zeros(last + 2 * reach + 1, np.float64)
    padded[reach : reach + len(samples)] = samples[: last + reach + 1]
    out = np.empty(count, np.float32)
    for first in range(0, count, BLOCK):
        places = np.arange(first, min(first + BLOCK, count), dtype=np.int64) * down
        begin, phase = places // up, places % up
        total = np.zeros(len(places))
        for tap in range(2 * reach + 1):
            total += padded[begin + tap] * kernels[phase, tap]
        out[first : first + len(places)] = total
    return out


@cache
def _kernels(up: int, down: int) -> tuple[F64, int]:
    """Return the filter at each of `up` places between two input samples, [up, 2 * reach + 1], and its reach."""
    scale = min(1.0, up / down) * PASSED
    reach = math.ceil(ZEROS / scale)
    apart = np.arange(-reach, reach + 1)[None, :] - (np.arange(up) / up)[:, None]
    inside = np.clip(1 - (apart * scale / ZEROS) ** 2, 0, None)
    kernels = np.sinc(apart * scale) * np.i0(BETA * np.sqrt(inside)) * (inside > 0)
    return kernels / kernels.sum(axis=1, keepdims=True), reach
