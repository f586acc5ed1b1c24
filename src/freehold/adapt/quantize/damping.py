"""How much damping a layer's moments need, judged by texts that they are not of.

The error that calibration reports falls with less damping, whatever other texts lose. So some rows of each matrix are
encoded with each damping by the moments of two thirds of the texts, and what counts is the output's error on the rest.
Knows a calibrated layer; knows no file.
Path: adapt.quantize -> choose_damping -> trellis.encode
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.quantize.calibration import CalibratedLayer
from freehold.adapt.quantize.feedback import feedback
from freehold.adapt.quantize.trellis import encode

F32 = NDArray[np.float32]

TRIED = (0.01, 0.03, 0.1, 0.3, 1.0)
_ROWS = 128  # of a matrix


def choose_damping(
    layer: CalibratedLayer, bits: int, threads: native.Threads, tried: Sequence[float] = TRIED
) -> dict[float, float]:
    """Return the relative error on the held-out texts by damping, a mean over the layer's inputs; the least is best."""
    errors = dict.fromkeys(tried, 0.0)
    firsts = {id(layer.moments[name]): name for name in reversed(layer.names)}  # of those that share an input
    for name in firsts.values():
        moments, held = layer.moments[name].blocks, layer.held[name].blocks  # their scale does not count
        weights = layer.weights(name)
        rows = np.ascontiguousarray(weights[:: max(1, len(weights) // _ROWS)][:_ROWS])
        for damping in tried:
            encoded = encode(rows, feedback(moments, damping), bits, threads)
            errors[damping] += relative_error(encoded.values, rows, held) / len(firsts)
    return errors


def relative_error(values: F32, weights: F32, moments: Sequence[F32]) -> float:
    """Return the mean squared error of the outputs over their mean square, by inputs of these moments."""
    wrong = whole = 0.0
    first = 0
    for h in moments:
        part = slice(first, first + len(h))
        wrong += _energy(values[:, part] - weights[:, part], h)
        whole += _energy(weights[:, part], h)
        first += len(h)
    return wrong / whole if whole else 0.0


def _energy(rows: F32, moments: F32) -> float:
    return float(np.einsum("ij,ij->", rows @ moments, rows, dtype=np.float64))
