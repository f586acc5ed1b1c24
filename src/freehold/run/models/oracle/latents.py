"""The oracle's latent attention, to all tokens or to those that an index picks, and what it keeps of a sequence.

Knows keys, values and scores in NumPy; knows no weights' files and no whole model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.run.models.config.rope import RopeTable
from freehold.run.models.oracle.arithmetic import layer_norm, rms_norm, rotate, softmax, visible

F32 = NDArray[np.float32]


class KvStore:
    """Keys and values of one sequence, every layer: float32 [positions, heads, width]; and states by layer and name."""

    def __init__(self, layers: int, f16: bool) -> None:
        self.length = 0
        self._f16 = f16
        self._pages: list[tuple[F32, F32] | None] = [None] * layers  # those of indexes last
        self.states: dict[tuple[int, str], F32] = {}  # zeros where there is none yet

    def append(self, layer: int, k: F32, v: F32) -> None:
        """Add the rows of one step, rounded to f16 if the store is meant to hold that."""
        if self._f16:
            k, v = (a.astype(np.float16).astype(np.float32) for a in (k, v))
        old = self._pages[layer]
        self._pages[layer] = (
            (k, v) if old is None else (np.concatenate([old[0], k]), np.concatenate([old[1], v]))
        )

    def read(self, layer: int) -> tuple[F32, F32]:
        """Return a layer's keys and values so far."""
        pages = self._pages[layer]
        assert pages is not None, "a layer reads its cache after rope_store"
        return pages


# --- ops of latent attention: products by head, the latents kept, attention over them ---------------
# The golden vectors judge the same layers in their expanded form, in which keys and values of every head are
# computed from each latent.


class LatentVerbs:
    """The verbs that latent attention alone uses."""

    _kv: KvStore  # of latents it has keys alone
    _positions: NDArray[np.integer]

    def linear_heads(self, x: F32, weight: Any, heads: int, room: int = 0) -> F32:
        w = weight.dense().reshape(heads, -1, weight.columns)
        parts = x.reshape(len(x), heads, -1)[..., : weight.columns]
        out = np.einsum("rhk,hnk->rhn", parts, w)
        return np.pad(out, ((0, 0), (0, 0), (0, room))).reshape(len(x), -1)

    def latent_store(
        self,
        layer: int,
        q: F32,
        absorbed: F32,
        kv: F32,
        norm: F32,
        eps: float,
        rope: RopeTable | None,
        rows: bool = False,
    ) -> None:
        count, latent = len(kv), len(norm)
        turned = kv.shape[1] - latent
        wide = absorbed.reshape(count, -1, kv.shape[1])
        ends = q.reshape(count, wide.shape[1], -1)[..., -turned:]
        wide[..., latent:] = self._turn(ends, rope)
        keys = np.concatenate(
            [rms_norm(kv[:, None, :latent], norm, eps), self._turn(kv[:, None, latent:], rope)], axis=2
        )
        self._kv.append(layer, keys, keys[..., :0])

    def _turn(self, heads: F32, rope: RopeTable | None) -> F32:
        return heads if rope is None else rotate(heads, self._positions, rope)

    def latent_attention(self, layer: int, q: F32, latent: int, scale: float) -> F32:
        keys = self._kv.read(layer)[0][:, 0]
        return self.picked_attention(layer, q, visible(self._positions, len(keys), 0), latent, scale)

    def index_store(
        self, layer: int, q: F32, k: F32, weight: F32, bias: F32, eps: float, rope: RopeTable, adjacent: bool
    ) -> None:
        turn = replace(rope, adjacent=adjacent)
        heads = q.reshape(len(q), -1, k.shape[1])
        heads[:] = self._turn(heads, turn)
        keys = self._turn(layer_norm(k, weight, bias, eps)[:, None], turn)
        self._kv.append(layer, keys, keys[..., :0])

    def pick(self, layer: int, q: F32, weights: F32, top_k: int) -> NDArray[np.bool_]:
        """Return which positions each row picks: bool [rows, positions]."""
        keys = self._kv.read(layer)[0][:, 0]
        heads = q.reshape(len(q), -1, keys.shape[1])
        products = np.maximum(np.einsum("rhd,kd->rhk", heads, keys), 0)
        scores = np.einsum("rh,rhk->rk", weights, products)
        seen = visible(self._positions, len(keys), 0)
        best = np.argsort(-np.where(seen, scores, -np.inf), axis=1, kind="stable")[:, :top_k]
        picks = np.zeros(seen.shape, bool)
        np.put_along_axis(picks, best, True, axis=1)
        return picks & seen

    def picked_attention(
        self, layer: int, q: F32, picks: NDArray[np.bool_], latent: int, scale: float
    ) -> F32:
        keys = self._kv.read(layer)[0][:, 0]
        heads = q.reshape(len(q), -1, keys.shape[1])
        scores = np.einsum("rhd,kd->hrk", heads, keys).astype(np.float64) * scale
        weights = softmax(np.where(picks, scores, -np.inf))
        return np.einsum("hrk,kc->rhc", weights.astype(np.float32), keys[:, :latent]).reshape(len(q), -1)
