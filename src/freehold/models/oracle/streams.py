"""The oracle's ops over residual streams that lie side by side, and over gates that are cut, in NumPy.

Knows streams of a row, [rows, streams, width]; knows no key, no value and no state.
Path: oracle.NumpyOps -> StreamVerbs
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freehold.models.oracle.arithmetic import gelu_tanh, rms_norm

F32 = NDArray[np.float32]


class StreamVerbs:
    """What NumpyOps computes with several streams; arXiv 2301.13310."""

    def part(self, x: F32, at: int, width: int) -> F32:
        return x[:, at : at + width].copy()

    def spread(self, x: F32, others: F32, least: float) -> F32:
        return np.concatenate([x, _sized(x, others, least).reshape(others.shape)], axis=1)

    def merge(self, x: F32, others: F32, least: float) -> F32:
        first = x[:, : x.shape[1] - others.shape[1]]
        streams = np.concatenate([first[:, None], _sized(first, others, least)], axis=1)
        return streams.mean(axis=1, dtype=np.float64).astype(np.float32)

    def predict(self, x: F32, router: F32, norm: F32, coefs: F32, active: int, eps: float) -> F32:
        streams = _streams(x, norm)
        n = streams.shape[1]
        mixed = _modalities(streams[:, active], router, norm, eps) @ coefs.reshape(n * n, n).T
        streams += np.einsum("rji,riw->rjw", mixed.reshape(-1, n, n), streams)
        return streams[:, active].copy()

    def correct(
        self, x: F32, made: F32, router: F32, norm: F32, coefs: F32, scale: F32, active: int, eps: float
    ) -> F32:
        streams = _streams(x, norm)
        n = streams.shape[1]
        by = 1 + _modalities(made, router, norm, eps) @ coefs.reshape(n, n).T
        streams += by[:, :, None] * (made - streams[:, active])[:, None]
        return streams[:, active] * scale

    def gaussian_gate(self, gate: F32, up: F32, above: float) -> None:
        middle = gate.mean(axis=1, dtype=np.float64, keepdims=True)
        cut = middle + above * np.sqrt(np.mean(np.square(gate - middle), axis=1, keepdims=True))
        gate[:] = gelu_tanh(np.maximum(gate - cut, 0).astype(np.float32)) * up


def _streams(x: F32, norm: F32) -> F32:
    """View rows as streams as wide as the norm."""
    return x.reshape(len(x), -1, len(norm))


def _modalities(x: F32, router: F32, norm: F32, eps: float) -> F32:
    return np.tanh(rms_norm(x, norm, eps) @ router.reshape(-1, len(norm)).T)


def _sized(x: F32, others: F32, least: float) -> F32:
    """Give parts of `others` as wide as x the root mean square of x: [rows, parts, width]."""
    parts = others.reshape(len(x), -1, x.shape[1])
    size = np.mean(np.square(x, dtype=np.float64), axis=1)[:, None, None]
    own = np.mean(np.square(parts, dtype=np.float64), axis=2, keepdims=True)
    return (parts * np.sqrt(size / np.maximum(own, least))).astype(np.float32)
