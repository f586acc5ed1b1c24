"""What the ops of latent attention mean, in NumPy: products by head, the latents kept, attention over them.

Knows arrays of one sequence; knows no family. The golden vectors judge the same layers in their expanded form, in which
keys and values of every head are computed from each latent.
Path: parts.latent.LatentAttention.forward -> oracle.NumpyOps -> LatentVerbs
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from freehold.models.config.rope import RopeTable
from freehold.models.oracle.arithmetic import rms_norm, rotate, softmax, visible

F32 = NDArray[np.float32]


class LatentStore(Protocol):
    """Keeps a layer's keys and values; of latents, keys alone."""

    def append(self, layer: int, k: F32, v: F32) -> None:
        """Add the rows of one step."""
        ...

    def read(self, layer: int) -> tuple[F32, F32]:
        """Return all rows so far."""
        ...


class LatentVerbs:
    """The verbs that latent attention alone uses."""

    _kv: LatentStore
    _positions: NDArray[np.integer]

    def linear_heads(self, x: F32, weight: Any, heads: int, room: int = 0) -> F32:
        w = weight.dense().reshape(heads, -1, weight.columns)
        parts = x.reshape(len(x), heads, -1)[..., : weight.columns]
        out = np.einsum("rhk,hnk->rhn", parts, w)
        return np.pad(out, ((0, 0), (0, 0), (0, room))).reshape(len(x), -1)

    def latent_store(
        self, layer: int, q: F32, absorbed: F32, kv: F32, norm: F32, eps: float, rope: RopeTable | None
    ) -> None:
        rows, latent = len(kv), len(norm)
        turned = kv.shape[1] - latent
        wide = absorbed.reshape(rows, -1, kv.shape[1])
        ends = q.reshape(rows, wide.shape[1], -1)[..., -turned:]
        wide[..., latent:] = self._turn(ends, rope)
        keys = np.concatenate(
            [rms_norm(kv[:, None, :latent], norm, eps), self._turn(kv[:, None, latent:], rope)], axis=2
        )
        self._kv.append(layer, keys, keys[..., :0])

    def _turn(self, heads: F32, rope: RopeTable | None) -> F32:
        return heads if rope is None else rotate(heads, self._positions, rope)

    def latent_attention(self, layer: int, q: F32, latent: int, scale: float) -> F32:
        keys = self._kv.read(layer)[0][:, 0]
        heads = q.reshape(len(q), -1, keys.shape[1])
        scores = np.einsum("rhd,kd->hrk", heads, keys).astype(np.float64) * scale
        weights = softmax(np.where(visible(self._positions, len(keys), 0), scores, -np.inf))
        return np.einsum("hrk,kc->rhc", weights.astype(np.float32), keys[:, :latent]).reshape(len(q), -1)
