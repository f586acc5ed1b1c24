"""Samples of any rate become samples of another, by a filter of fixed length: the same bits on every machine.

Each output sample is a sum over the input within ZEROS crossings of a sinc on both sides, under Kaiser's window. Sums
are in float64 and in the order of the samples, so neither a library's order of adding nor the pieces show.
Source: J. O. Smith, Digital Audio Resampling (ccrma.stanford.edu/~jos/resample), for the method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

ZEROS = 24  # crossings on each side
BETA = 9.0  # of Kaiser's window: 90 dB below
PASSED = 0.945  # of the lower of both Nyquist rates
BLOCK = 1 << 15  # output samples that are computed at a time
MOST_WEIGHTS = 1 << 22  # of a filter: 32 MiB, several times that on the way to it
_FILTERS_KEPT = 4  # strangers choose the rates


def resampled(samples: F32, rate: int, to: int) -> F32:
    """Return samples, float32 [n], at another rate: float32 [ceil(n * to / rate)]."""
    if rate == to or not len(samples):
        return samples
    return np.concatenate([*resampled_pieces([samples], rate, to)])


def resampled_pieces(pieces: Iterable[F32], rate: int, to: int) -> Iterator[F32]:
    """Yield the same samples as `resampled` gives for all pieces together; memory is that of a piece.

    Raises UsageError for a rate whose filter would have more than MOST_WEIGHTS.
    """
    if rate == to:
        yield from pieces
        return
    shared = math.gcd(rate, to)
    up, down = to // shared, rate // shared
    _check(up, down, rate, to)
    kernels, reach = _kernels(up, down)
    held, begin = np.zeros(reach), -reach  # input that is needed still, and the place of its first sample
    received = done = 0
    for piece in pieces:
        held = np.concatenate([held, piece.astype(np.float64)])
        received += len(piece)
        # Whose last input, at floor(n * down / up) + reach, has come.
        ready = max(done, -(-(received - reach) * up // down))
        yield from _outputs(held, begin, range(done, ready), (up, down), kernels)
        done = ready
        passed = max(0, done * down // up - reach - begin)
        held, begin = held[passed:], begin + passed
    held = np.concatenate([held, np.zeros(2 * reach + 1)])
    yield from _outputs(held, begin, range(done, -(-received * up // down)), (up, down), kernels)


def _outputs(held: F64, begin: int, wanted: range, ratio: tuple[int, int], kernels: F64) -> Iterator[F32]:
    """Yield the output samples of numbers in `wanted`, from input whose first sample has the number `begin`."""
    from freehold import _native as native

    for first in range(wanted.start, wanted.stop, BLOCK):
        yield native.resampled(held, begin, first, min(BLOCK, wanted.stop - first), kernels, ratio[1])


def _check(up: int, down: int, rate: int, to: int) -> None:
    weights = up * (2 * _reach(up, down) + 1)
    if weights > MOST_WEIGHTS:
        raise UsageError(
            f"a recording of {rate:,} Hz takes a filter of {weights:,} weights to {to:,} Hz; at most "
            f"{MOST_WEIGHTS:,} are computed",
            "convert it to 16,000 Hz",
        )


def _reach(up: int, down: int) -> int:
    return math.ceil(ZEROS / (min(1.0, up / down) * PASSED))


@lru_cache(_FILTERS_KEPT)
def _kernels(up: int, down: int) -> tuple[F64, int]:
    """Return the filter at each of `up` places between two input samples, [up, 2 * reach + 1], and its reach."""
    scale = min(1.0, up / down) * PASSED
    reach = _reach(up, down)
    apart = np.arange(-reach, reach + 1)[None, :] - (np.arange(up) / up)[:, None]
    inside = np.clip(1 - (apart * scale / ZEROS) ** 2, 0, None)
    kernels = np.sinc(apart * scale) * np.i0(BETA * np.sqrt(inside)) * (inside > 0)
    return kernels / kernels.sum(axis=1, keepdims=True), reach
