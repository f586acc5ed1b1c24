"""How errors of earlier columns change the targets of later ones (LDLQ), from a matrix's inputs' second moments.

The error E of a row costs E H E^T. With H = M D M^T, M block upper triangular with unit blocks, that is the sum over
blocks of (E M)_b D_b (E M)_b^T: a block whose target is moved by the errors before it, times M, is left with its own
error alone. Source: arXiv 2307.13304 (QuIP).
Knows moments in one block or several along the diagonal; knows no weight.
Path: CalibratedLayer.feedback -> feedback -> encoding.encode
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.errors import BadModelFile

F32 = NDArray[np.float32]

BLOCK = 8  # columns that the encoder commits at once
DAMPING = 0.3  # of an input's own moment, added to it
_LEAST = 0.01  # of the mean moment, added to every input's
_COLUMNS = 256  # of a step of the root


@dataclass(frozen=True, slots=True)
class Feedback:
    """What the encoder needs of moments: `push` [n, width], and how much each column's own error counts, [n]."""

    push: F32
    importance: F32


def feedback(moments: Sequence[F32], damping: float = DAMPING, block: int = BLOCK) -> Feedback:
    """Factor blocks of moments along a diagonal, each input's own moment grown by `damping` times itself.

    So what two inputs have in common counts 1 / (1 + damping) of what calibration saw, whatever their size. Inputs that
    it never saw are left with a hundredth of the mean. Raises BadModelFile for moments that are not finite.
    """
    columns, width = sum(map(len, moments)), len(moments[0])
    push, importance = np.zeros((columns, width), np.float32), np.empty(columns, np.float32)
    mean = sum(float(np.trace(h, dtype=np.float64)) for h in moments) / columns or 1.0
    if not math.isfinite(mean):
        raise BadModelFile(
            "the model computes NaN or infinity for the texts that it is calibrated on",
            "its weights are damaged: fetch it again",
        )
    first = 0
    for h in moments:
        part = slice(first, first + len(h))
        importance[part] = _factor(h, damping, _LEAST * mean, block, push[part, : len(h)])
        first += len(h)
    return Feedback(push, importance / importance.mean())


def _factor(h: F32, damping: float, added: float, block: int, push: F32) -> F32:
    """Write M - I to `push`, and return the diagonal of D."""
    upper = _upper_root(h, damping, added)
    importance = np.empty(len(h), np.float32)
    for first in range(0, len(h), block):
        part = slice(first, min(first + block, len(h)))
        own = upper[part, part].astype(np.float64)
        importance[part] = np.einsum("ij,ij->i", own, own)
        push[:first, part] = upper[:first, part] @ np.linalg.inv(own).astype(np.float32)
        push[first:, part] = 0
    return importance


def _upper_root(h: F32, damping: float, added: float) -> F32:
    """Find the upper triangular U with U U^T = h + damping * diag(h) + added * I; `added` grows until there is one."""
    step = grown = added
    while True:
        upper = h.copy()
        diagonal = np.einsum("ii->i", upper)
        diagonal *= np.float32(1 + damping)
        diagonal += np.float32(grown)
        try:
            _root(upper)
        except np.linalg.LinAlgError:
            step *= 10
            grown += step
        else:
            return upper


def _root(h: F32) -> None:
    """Replace symmetric h by U, some columns at a time from the last: matrix products, and one matrix of memory."""
    for last in range(len(h), 0, -_COLUMNS):
        own, before = slice(max(last - _COLUMNS, 0), last), max(last - _COLUMNS, 0)
        h[own, own] = np.linalg.cholesky(h[own, own][::-1, ::-1])[::-1, ::-1]
        h[:before, own] = h[:before, own] @ np.linalg.inv(h[own, own].astype(np.float64)).T.astype(np.float32)
        for first in range(0, before, _COLUMNS):
            rows = slice(first, first + _COLUMNS)
            h[rows, first:before] -= h[rows, own] @ h[first:before, own].T
        h[own, :before] = 0
