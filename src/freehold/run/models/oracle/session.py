"""The oracle: the same forward passes in plain NumPy on decoded weights, for judging the native engine.

Knows what each op means, one sequence at a time, in float32 with double sums where order would matter; slow.
Parts are shared with the engine on purpose: this judges the kernels and the packing; the golden vectors, which
another implementation made, judge the composition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from freehold.base.layers import LayerSpec, pages_of
from freehold.run.formats import ModelFile, dequantize, open_model_file
from freehold.run.models.binding.bind import Source, assemble, read_source
from freehold.run.models.binding.binder import Stored
from freehold.run.models.config.rope import RopeTable
from freehold.run.models.family import Network, NetworkWeights, Ops
from freehold.run.models.oracle.arithmetic import (
    ACTIVATIONS,
    DeltaVerbs,
    NearVerbs,
    RecurrentVerbs,
    activated,
    gelu_erf,
    gelu_tanh,
    layer_norm,
    rms_norm,
    rotate,
    sigmoid,
    softmax,
    softmax_beside,
    visible,
)
from freehold.run.models.oracle.latents import KvStore as KvStore
from freehold.run.models.oracle.latents import LatentVerbs

F32 = NDArray[np.float32]


# --- ops over residual streams that lie side by side, and over gates that are cut -------------------


class StreamVerbs:
    """What NumpyOps computes with several streams; arXiv 2301.13310."""

    def part(self, x: F32, at: int, width: int) -> F32:
        return x[:, at : at + width].copy()

    def join(self, x: F32, y: F32) -> F32:
        return np.concatenate([x, y], axis=1)

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


# --- all ops, a model, a sequence -------------------------------------------------------------------

_ATTENTION_ROWS = 256  # query rows whose scores are in memory at once


class PictureRows(NamedTuple):
    """What a step has of pictures: see native.Plan.run."""

    features: F32 | None = None  # [n, width]
    feature_rows: NDArray[np.integer] | None = None  # [rows], -1 for a token's; None: a tower's step
    places: NDArray[np.integer] | None = None  # [rows, 3]
    groups: NDArray[np.integer] | None = None  # [rows], which attend to each other in a tower; None: all
    ends: NDArray[np.integer] | None = None  # [rows]


class NumpyOps(DeltaVerbs, LatentVerbs, NearVerbs, RecurrentVerbs, StreamVerbs):
    """family.Ops executed at once: buffers are float32 arrays [rows, width]."""

    def __init__(
        self,
        tokens: NDArray[np.integer],
        kv: KvStore,
        layers: Sequence[LayerSpec],
        pictures: PictureRows = PictureRows(),  # noqa: B008
    ) -> None:
        self.result: F32 | None = None
        self._pictures = pictures
        self.routes: list[ChosenExperts] = []  # of each layer with experts
        self._tokens = tokens
        self._kv = kv
        self._states = kv.states
        self._kv_heads = [spec.kv_heads for spec in layers]
        self._positions = np.arange(kv.length, kv.length + len(tokens))

    def embed(self, table: DenseMatrix, scale: float = 1.0, beyond: int = -1, shown: int = -1) -> F32:
        known = self._tokens < table.height
        assert known.all() or beyond >= 0, "a token is outside the vocabulary"
        pictures, features = self._shown()
        rows = np.where(known, self._tokens, beyond)
        x = table.take(np.where(pictures, shown, rows) if shown >= 0 else rows) * np.float32(scale)
        if shown < 0:
            x[pictures] = features[:, : x.shape[1]]
        return x

    def add_features(self, x: F32, at: int) -> None:
        shown, features = self._shown()
        if shown.any():
            x[shown] += features[:, at : at + x.shape[1]]

    def features(self, width: int, at: int = 0) -> F32:
        assert self._pictures.features is not None, "a tower's step has features"
        return self._pictures.features[:, at : at + width].copy()

    def section(self) -> None:
        """Mark nothing: everything is computed at once."""

    def _shown(self) -> tuple[NDArray[np.bool_], F32]:
        """Tell which rows are pictures', and return their features."""
        features, rows, *_ = self._pictures
        if features is None or rows is None:
            return np.zeros(len(self._tokens), bool), np.zeros((0, 1), np.float32)
        return rows >= 0, features[rows[rows >= 0]]

    def norm(self, x: F32, weight: F32, eps: float) -> F32:
        return rms_norm(x.reshape(len(x), -1, len(weight)), weight, eps).reshape(x.shape)

    def linear(
        self,
        x: F32,
        weights: Sequence[DenseMatrix],
        biases: Sequence[F32 | None],
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> list[F32]:
        n = x if norm is None else rms_norm(x, norm, eps)
        return [_affine(n, w, b) for w, b in zip(weights, biases, strict=True)]

    def linear_add(
        self,
        x: F32,
        weight: DenseMatrix,
        residual: F32,
        bias: F32 | None = None,
        gate: F32 | None = None,
        scale: float = 1.0,
    ) -> None:
        y = _affine(x, weight, bias) * np.float32(scale)
        residual += y if gate is None else sigmoid(gate) * y

    def gated(
        self,
        x: F32,
        gate: DenseMatrix,
        up: DenseMatrix,
        act: str,
        norm: F32 | None = None,
        eps: float = 0.0,
        limit: float = 0.0,
    ) -> F32:
        g, u = self.linear(x, (gate, up), (None, None), norm, eps)
        return activated(act, g, u, limit, 1.0)

    def rope_store(
        self,
        layer: int,
        q: F32,
        k: F32,
        v: F32,
        rope: RopeTable | None,
        q_norm: F32 | None = None,
        k_norm: F32 | None = None,
        eps: float = 0.0,
    ) -> None:
        heads = self._kv_heads[layer]
        width = k.shape[1] // heads
        q[:] = self._prepare(q, width, rope, q_norm, eps)
        keys = self._prepare(k, width, rope, k_norm, eps)
        shape = (len(v), heads, -1)
        self._kv.append(layer, keys.reshape(shape), v.reshape(shape))

    def _prepare(self, x: F32, width: int, rope: RopeTable | None, norm: F32 | None, eps: float) -> F32:
        heads = x.reshape(len(x), -1, width)
        if norm is not None:
            heads = rms_norm(heads, norm, eps)
        if rope is not None:
            heads = rotate(heads, self._turns(rope), rope)
        return heads.reshape(x.shape)

    def attention(
        self,
        layer: int,
        q: F32,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: F32 | None = None,
        chunk: int = 0,
        both: bool = False,
        until: int = 0,
    ) -> F32:
        k, v = self._kv.read(layer)
        ends = self._pictures.ends if both else None
        rows = len(q)
        if until:
            ends = np.full(rows, until)
        heads = q.reshape(rows, k.shape[1], -1, k.shape[2])  # [rows, kv heads, group, width]
        sink = None if sinks is None else sinks.reshape(k.shape[1], -1, 1, 1).astype(np.float64)
        out = np.empty((*heads.shape[:3], v.shape[2]), np.float32)
        for first in range(0, rows, _ATTENTION_ROWS):
            part = slice(first, first + _ATTENTION_ROWS)
            seen = None if ends is None else ends[part]
            mask = visible(self._positions[part], len(k), window, chunk, seen)
            for head in range(k.shape[1]):
                scores = np.einsum("rgd,kd->grk", heads[part, head], k[:, head]).astype(np.float64) * scale
                if softcap:
                    scores = softcap * np.tanh(scores / softcap)
                scores = np.where(mask, scores, -np.inf)
                weights = softmax(scores) if sink is None else softmax_beside(scores, sink[head])
                out[part, head] = np.einsum("grk,kd->rgd", weights.astype(np.float32), v[:, head])
        return out.reshape(rows, -1)

    def add_norm(self, residual: F32, x: F32, weight: F32, eps: float) -> None:
        residual += rms_norm(x, weight, eps)

    def logits(
        self,
        x: F32,
        weight: DenseMatrix,
        norm: F32 | None,
        eps: float = 0.0,
        scale: float = 1.0,
        softcap: float = 0.0,
        bias: F32 | None = None,
    ) -> None:
        (out,) = self.linear(x, (weight,), (bias,), norm, eps)
        out = out * np.float32(scale)
        self.result = (softcap * np.tanh(out / softcap)).astype(np.float32) if softcap else out

    def route(
        self,
        x: F32,
        router: DenseMatrix,
        top_k: int,
        *,
        norm: F32 | None = None,
        eps: float = 0.0,
        renormalise: bool,
        scoring: str = "softmax",
        bias: F32 | None = None,
        correction: F32 | None = None,
        groups: int = 1,
        kept: int = 1,
        group_score: str = "best",
        epsilon: float = 0.0,
        least: float = 0.0,
        scale: float = 1.0,
        jitter: float = 0.0,
        corrects_logits: bool = False,
    ) -> ChosenExperts:
        (logits,) = self.linear(x, (router,), (bias,), norm, eps)
        by = ScoreOrder(correction, groups, kept, group_score, corrects_logits)
        rule = {"epsilon": epsilon, "least": least, "scale": scale, "jitter": jitter}
        routes = chosen_experts(logits, top_k, scoring, by, renormalise=renormalise, **rule)
        self.routes.append(routes)
        return routes

    def experts(
        self,
        x: F32,
        routes: ChosenExperts,
        gate: DenseMatrix | None,
        up: DenseMatrix,
        down: DenseMatrix,
        residual: F32 | None,
        *,
        act: str,
        norm: F32 | None = None,
        eps: float = 0.0,
        gate_bias: F32 | None = None,
        up_bias: F32 | None = None,
        down_bias: F32 | None = None,
        limit: float = 0.0,
        alpha: float = 1.0,
        weigh_input: bool = False,
    ) -> F32:
        n, inner = x if norm is None else rms_norm(x, norm, eps), down.columns
        width = down.height // (up.height // inner)
        total = np.zeros((len(n), width), np.float32)
        for expert in np.unique(routes.ids):
            row, place = np.nonzero(routes.ids == expert)
            weights = routes.weights[row, place, None]
            read = n[row] * weights if weigh_input else n[row]
            g = None if gate is None else _of_expert(read, gate, gate_bias, expert, inner)
            h = activated(act, g, _of_expert(read, up, up_bias, expert, inner), limit, alpha)
            y = _of_expert(h, down, down_bias, expert, width)
            total[row] += y if weigh_input else weights * y
        if residual is None:
            return total
        residual += total
        return residual

    def embed_sum(
        self, words: DenseMatrix, positions: DenseMatrix, kinds: DenseMatrix | None = None, start: int = 0
    ) -> F32:
        x = words.take(self._tokens) + positions.take(self._positions - start)
        return x if kinds is None else x + kinds.take(np.array([0]))

    def layer_norm(self, x: F32, weight: F32, bias: F32, eps: float) -> None:
        x[:] = layer_norm(x, weight, bias, eps)

    def layer_normed(self, x: F32, weight: F32 | None, bias: F32 | None, eps: float, group: int = 0) -> F32:
        each = x.reshape(len(x), -1, group or x.shape[1])
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        plain = layer_norm(each, one, zero, eps)
        # Vectors are as wide as a row, or as one group of it.
        scale, shift = (v if v is None else v.reshape(-1, each.shape[-1]) for v in (weight, bias))
        scaled = plain if scale is None else plain * scale
        return (scaled if shift is None else scaled + shift).reshape(x.shape)

    def linear_act(
        self,
        x: F32,
        weight: DenseMatrix,
        act: str,
        bias: F32 | None = None,
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> F32:
        n = x if norm is None else rms_norm(x, norm, eps)
        return ACTIVATIONS[act](_affine(n, weight, bias))

    def rotate(self, x: F32, rope: RopeTable, width: int) -> None:
        x[:] = rotate(x.reshape(len(x), -1, width), self._turns(rope), rope).reshape(x.shape)

    def _turns(self, rope: RopeTable) -> NDArray[np.integer]:
        """Return what a rope turns rows by: their places where it has axes and the step has places."""
        places = self._pictures.places
        return self._positions if places is None or rope.axes is None else places

    def clamp(self, x: F32, limit: float, low: float | None = None) -> None:
        np.clip(x, -limit if low is None else low, limit, out=x)

    def gelu(self, x: F32) -> None:
        x[:] = gelu_erf(x)

    def xielu(self, x: F32, positive: float, negative: float, beta: float, eps: float) -> None:
        v = x.astype(np.float64)
        below = negative * (np.expm1(np.minimum(v, eps)) - v)
        x[:] = np.where(v > 0, positive * v * v, below) + beta * v

    def temper(self, x: F32, beta: float, original: int, shift: int = 0) -> None:
        factor = 1 + beta * np.log1p((self._positions + shift) // original)
        x *= factor[:, None].astype(np.float32)

    def scale(self, x: F32, factor: float) -> None:
        x *= np.float32(factor)

    def add(self, x: F32, y: F32, at: int = -1) -> None:
        if at < 0:
            assert x.shape == y.shape, f"{y.shape} to {x.shape} without `at`"
            at = 0
        grown = x[:, at:].reshape(len(x), -1, y.shape[1])
        x[:, at:] = (grown + y[:, None]).reshape(len(x), -1)

    def multiply(self, x: F32, y: F32, at: int = 0) -> None:
        x *= y[:, at : at + x.shape[1]]

    def weigh(self, routes: ChosenExperts, scale: F32) -> None:
        routes.weights[:] *= scale[routes.ids]

    def attend_within(self, groups: NDArray[np.integer]) -> None:
        """From now on rows of a tower attend to those of their group alone: int [rows]."""
        self._pictures = self._pictures._replace(groups=groups)

    def attend_both(
        self,
        q: F32,
        k: F32,
        v: F32,
        heads: int,
        scale: float,
        first: int = 0,
        count: int = 0,
        into: F32 | int = -1,
    ) -> F32:
        q, k, v = (a.reshape(len(a), heads, -1) for a in (q, k, v))
        scores = np.einsum("rhd,khd->hrk", q, k).astype(np.float64) * scale
        if (groups := self._pictures.groups) is not None:
            scores = np.where(groups[:, None] == groups, scores, -np.inf)
        out = np.einsum("hrk,khd->rhd", softmax(scores).astype(np.float32), v)
        some = slice(first, first + count if count else heads)
        every = np.zeros_like(out) if isinstance(into, int) else into.reshape(out.shape)
        every[:, some] = out[:, some]
        return every.reshape(len(q), -1)

    def hidden(self, x: F32, beside: Sequence[F32] = ()) -> None:
        self.result = np.concatenate([x, *beside], axis=1)


def _affine(x: F32, weight: DenseMatrix, bias: F32 | None) -> F32:
    y = weight.times(x)
    return y if bias is None else y + bias


def _of_expert(x: F32, weight: DenseMatrix, bias: F32 | None, expert: int, rows: int) -> F32:
    y = x @ weight.expert(expert, rows).T
    return y if bias is None else y + bias[expert * rows : (expert + 1) * rows]


class Oracle:
    """A model in NumPy. Decoded weights take 4 bytes each; `low_memory` decodes them at each use instead.

    `f16_kv` rounds keys and values as the native cache does.
    """

    def __init__(
        self, source: str | Path | ModelFile, *, low_memory: bool = False, f16_kv: bool = False
    ) -> None:
        opened = open_model_file(source) if isinstance(source, str | Path) else source
        self.source: Source = read_source(opened)
        self._f16_kv = f16_kv
        self.layers = tuple(layer.keeps for layer in self.source.network.layers)
        self._weights = assemble(self.source, lambda t: DenseMatrix(t, not low_memory), lambda rope: rope)
        if opened is not source and not low_memory:
            opened.close()

    def logits(self, ids: Sequence[int]) -> F32:
        """Compute the logits after every token of `ids`: float32 [T, V]."""
        return self.session().step(ids)

    def hidden(self, ids: Sequence[int]) -> F32:
        """Compute an encoder's last activations for the text `ids`: float32 [T, hidden]."""
        return self.session().step(ids)

    def session(self, context: int = 0) -> Session:
        """Start an empty sequence of up to `context` tokens, which chooses a longrope; 0: as many as its first step."""
        kv = KvStore(len(pages_of(self.layers)), self._f16_kv)
        return Session(self.source.network, self._weights, kv, self.layers, context)


class Session:
    """A sequence that grows: `step` appends tokens and returns their logits."""

    def __init__(
        self,
        network: Network,
        weights: NetworkWeights,
        kv: KvStore,
        layers: Sequence[LayerSpec],
        context: int = 0,
    ) -> None:
        self.routes: list[ChosenExperts] = []  # of the newest step, for each layer with experts
        self._network = network
        self._weights = weights
        self._kv = kv
        self._layers = layers
        self._context = context

    def step(self, ids: Sequence[int], pictures: PictureRows = PictureRows()) -> F32:  # noqa: B008
        """Append `ids` and return float32 logits [len(ids), V], or an encoder's last activations."""
        ops = NumpyOps(np.asarray(ids, np.int64), self._kv, self._layers, pictures)
        self._context = self._context or len(ids)
        self._network.forward(cast(Ops, ops), self._weights.at(self._context))
        self.routes = ops.routes
        self._kv.length += len(ids)
        assert ops.result is not None, "a forward pass ends in logits or hidden"
        return ops.result


# --- the oracle's router: how a row's logits become chosen experts and their weights, in NumPy ------

F64 = NDArray[np.float64]
Ids = NDArray[np.int64]


class ChosenExperts(NamedTuple):
    """What `route` decides for each row: experts, the greatest first, and their weights."""

    ids: Ids  # [rows, chosen]
    weights: F32  # [rows, chosen]
    margin: F64  # [rows]: how far what is compared of the last one is above the best that was left out


class ScoreOrder(NamedTuple):
    """How scores are compared: with what added, and among which groups."""

    correction: F32 | None
    groups: int
    kept: int
    group_score: str
    logits: bool = False  # whether a correction joins logits


def chosen_experts(
    logits: F32,
    top_k: int,
    scoring: str,
    by: ScoreOrder,
    *,
    renormalise: bool,
    epsilon: float,
    least: float,
    scale: float,
    jitter: float,
) -> ChosenExperts:
    """Choose each row's experts and weigh them by a rule's name and its numbers."""
    logits64 = logits.astype(np.float64)
    if scoring == "sparsemixer":
        return _sparse_mixer(logits64, jitter)
    with np.errstate(over="ignore"):
        scores = softmax(logits64) if scoring == "softmax" else 1 / (1 + np.exp(-logits64))
    plain = by.correction is None and by.group_score == "best"
    of = logits64 if plain or by.logits else scores
    compared = of + (0 if by.correction is None else by.correction)
    ids, margin = _best(compared, top_k, by)
    weights = np.take_along_axis(scores, ids, -1)
    if renormalise:
        weights /= np.maximum(weights.sum(-1, keepdims=True) + epsilon, least)
    return ChosenExperts(ids, (weights * scale).astype(np.float32), margin)


def _best(compared: F64, top_k: int, by: ScoreOrder) -> tuple[Ids, F64]:
    """Ids of the greatest among the groups that are kept, of equals the lowest; and the narrowest margin."""
    margin = np.full(len(compared), np.inf)
    if by.kept < by.groups:
        grouped = compared.reshape(len(compared), by.groups, -1)
        ranked = -np.sort(-grouped, axis=-1)
        of_group = ranked[..., 0] + (ranked[..., 1] if by.group_score == "top2" else 0)
        kept, margin = _greatest(of_group, by.kept)
        open_ = np.zeros(of_group.shape, bool)
        np.put_along_axis(open_, kept, True, -1)
        compared = np.where(open_[..., None], grouped, -np.inf).reshape(compared.shape)
    ids, narrow = _greatest(compared, top_k)
    return ids, np.minimum(margin, narrow)


def _greatest(values: F64, count: int) -> tuple[Ids, F64]:
    order = np.argsort(-values, axis=-1, kind="stable")
    ranked = np.take_along_axis(values, order, -1)
    rest = ranked[:, count] if count < ranked.shape[1] else np.full(len(values), -np.inf)
    return order[:, :count], ranked[:, count - 1] - rest


def _sparse_mixer(logits: F64, jitter: float) -> ChosenExperts:
    """Take the greatest twice; weigh it by a softmax over those within a relative distance of 2 * jitter."""
    left, ids, weights = logits.copy(), [], []
    margin = np.full(len(logits), np.inf)
    for _ in range(2):
        best, gap = _greatest(left, 1)
        most = np.take_along_axis(left, best, -1)
        far = (most - logits) / np.maximum(np.abs(logits), most) > 2 * jitter
        weights.append(np.take_along_axis(softmax(np.where(far, -np.inf, left)), best, -1))
        np.put_along_axis(left, best, -np.inf, -1)
        ids.append(best)
        margin = np.minimum(margin, gap)
    return ChosenExperts(np.concatenate(ids, -1), np.concatenate(weights, -1).astype(np.float32), margin)


# --- what the oracle holds: decoded weight matrices ------------------------------------------------


class DenseMatrix:
    """A weight matrix decoded to float32: once, or anew at each use to save memory."""

    def __init__(self, tensor: Stored, keep: bool) -> None:
        self._tensor = tensor
        self._dense = self._decoded() if keep else None

    def dense(self) -> F32:
        """Return the weights, float32 [rows, columns]; experts lie one below another."""
        return self._decoded() if self._dense is None else self._dense

    def times(self, x: F32) -> F32:
        """Multiply rows [T, columns]: float32 [T, rows]."""
        return x @ self.dense().T

    def _decoded(self) -> F32:
        return self._tensor.numpy().reshape(-1, self._tensor.shape[-1])

    @property
    def columns(self) -> int:
        """Width of a row."""
        return self._tensor.shape[-1]

    @property
    def height(self) -> int:
        """Number of rows, of all experts together."""
        return math.prod(self._tensor.shape[:-1])

    def expert(self, number: int, rows: int) -> F32:
        """Return one expert's matrix of this many rows."""
        return self.take(np.arange(number * rows, (number + 1) * rows))

    def take(self, rows: NDArray[np.integer]) -> F32:
        """Return some rows, decoding no others."""
        if self._dense is not None:
            return self._dense[rows]
        held = self._tensor
        return dequantize(held.rows[rows], held.type, held.shape[-1], held.table)
