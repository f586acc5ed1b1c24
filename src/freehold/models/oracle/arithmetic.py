"""What the oracle's ops are made of: norms, activations, rotation, masks, in NumPy.

Knows formulas over float32 arrays, with double sums where order would matter; knows no model and no op.
Path: oracle.NumpyOps -> rms_norm, rotate, softmax
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from freehold.models.config.rope import RopeTable

F32 = NDArray[np.float32]


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    mean = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean + eps), np.float32) * weight


def layer_norm(x: F32, weight: F32, bias: F32, eps: float) -> F32:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis."""
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps), np.float32) * weight + bias


def rotate(heads: F32, positions: NDArray[np.integer], rope: RopeTable) -> F32:
    """Turn the first elements of each head, [rows, heads, width], by position times frequency."""
    half = len(rope.inv_freq)
    angles = positions[:, None, None] * rope.inv_freq.astype(np.float64)
    cos, sin = np.cos(angles) * rope.factor, np.sin(angles) * rope.factor
    first = slice(0, 2 * half, 2) if rope.adjacent else slice(0, half)
    second = slice(1, 2 * half, 2) if rope.adjacent else slice(half, 2 * half)
    out = heads.copy()
    out[..., first] = heads[..., first] * cos - heads[..., second] * sin
    out[..., second] = heads[..., second] * cos + heads[..., first] * sin
    return out


def visible(positions: NDArray[np.integer], keys: int, window: int, chunk: int = 0) -> NDArray[np.bool_]:
    """Mask [rows, keys]: a query at i sees keys j <= i; with a window w only i - w < j, with chunks only its own's."""
    i, j = positions[:, None], np.arange(keys)[None, :]
    if chunk:
        return (j <= i) & (j // chunk == i // chunk)
    return (j <= i) & (j > i - window) if window else j <= i


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the last axis."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_beside(scores: NDArray[np.float64], sink: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the last axis and one more logit, whose weight is left out."""
    all_ = np.concatenate([scores, np.broadcast_to(sink, (*scores.shape[:-1], 1))], -1)
    return softmax(all_)[..., :-1]


def sigmoid(x: F32) -> F32:
    """The logistic function."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def silu(x: F32) -> F32:
    """x times its logistic function."""
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)), np.float32)


def gelu_tanh(x: F32) -> F32:
    """GELU in its tanh form."""
    return (
        np.float32(0.5)
        * x
        * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))
    )


def gelu_erf(x: F32) -> F32:
    """GELU by its definition: x times the share of a normal distribution below x."""
    share = [0.5 * math.erfc(-v / math.sqrt(2)) for v in x.ravel().tolist()]
    return x * np.array(share, np.float32).reshape(x.shape)


def relu2(x: F32) -> F32:
    """The square of what is positive."""
    return np.square(np.maximum(x, 0))


ACTIVATIONS = {"silu": silu, "gelu": gelu_tanh, "gelu_erf": gelu_erf, "relu2": relu2}


def activated(act: str, gate: F32 | None, up: F32, limit: float, alpha: float) -> F32:
    """Compute the activation between an expert's halves."""
    if gate is None:
        return ACTIVATIONS[act](up)
    if act == "clamped":
        gate = np.minimum(gate, np.float32(limit))
        return (np.clip(up, -limit, limit) + 1) * gate * sigmoid(alpha * gate)
    return ACTIVATIONS[act](gate) * up
