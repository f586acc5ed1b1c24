"""What the oracle's ops are made of: norms, activations, rotation, masks, recurrences, in NumPy.

Knows formulas over float32 arrays, with double sums where order would matter; knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.run.models.config.rope import RopeTable

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
    """Turn the first elements of each head, [rows, heads, width], by position times frequency.

    `positions`: [rows], or [rows, 3] of which the rope's axes choose for each pair.
    """
    half = len(rope.inv_freq)
    turns = positions[:, None] if positions.ndim == 1 else positions[:, rope.axes]
    angles = (turns * rope.inv_freq.astype(np.float64))[:, None]
    cos, sin = np.cos(angles) * rope.factor, np.sin(angles) * rope.factor
    first = slice(0, 2 * half, 2) if rope.adjacent else slice(0, half)
    second = slice(1, 2 * half, 2) if rope.adjacent else slice(half, 2 * half)
    out = heads.copy()
    out[..., first] = heads[..., first] * cos - heads[..., second] * sin
    out[..., second] = heads[..., second] * cos + heads[..., first] * sin
    return out


def visible(
    positions: NDArray[np.integer],
    keys: int,
    window: int,
    chunk: int = 0,
    ends: NDArray[np.integer] | None = None,
) -> NDArray[np.bool_]:
    """Mask [rows, keys]: a query at i sees keys j <= i; with a window w only i - w < j, with chunks only its own's.

    With `ends` it sees keys before its end instead, which is i + 1 or beyond.
    """
    i, j = positions[:, None], np.arange(keys)[None, :]
    before = j <= i if ends is None else j < ends[:, None]
    if chunk:
        return before & (j // chunk == i // chunk)
    return before & (j > i - window) if window else before


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


def gelu_quick(x: F32) -> F32:
    """GELU as x times the logistic function of 1.702 x (arXiv 1606.08415)."""
    return x * sigmoid(np.float32(1.702) * x)


def relu(x: F32) -> F32:
    """What is positive."""
    return np.maximum(x, 0)


def relu2(x: F32) -> F32:
    """The square of what is positive."""
    return np.square(np.maximum(x, 0))


ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu_tanh,
    "gelu_erf": gelu_erf,
    "gelu_quick": gelu_quick,
    "relu": relu,
    "relu2": relu2,
}


def activated(act: str, gate: F32 | None, up: F32, limit: float, alpha: float) -> F32:
    """Compute the activation between a gated MLP's halves, or those of an expert. `limit`: as csrc/ops/activation.h."""
    if gate is None:
        return ACTIVATIONS[act](up)
    if act == "silu" and limit:
        return np.minimum(silu(gate), np.float32(limit)) * np.clip(up, -limit, limit)
    if act == "clamped":
        gate = np.minimum(gate, np.float32(limit))
        return (np.clip(up, -limit, limit) + 1) * gate * sigmoid(alpha * gate)
    return ACTIVATIONS[act](gate) * up


# --- ops over recurrent states: one token after another ---------------------------------------------

F64 = NDArray[np.float64]


class RecurrentVerbs:
    """What NumpyOps computes with states."""

    _states: dict[tuple[int, str], NDArray[Any]]  # by layer and name

    def gate_norm(self, y: F32, z: F32, weight: F32 | None, eps: float = 0.0, groups: int = 1) -> None:
        y *= silu(z)
        if weight is not None:
            each = (groups, y.shape[1] // groups)
            y[:] = rms_norm(y.reshape(-1, *each), weight.reshape(each), eps).reshape(y.shape)

    def ssm_scan(
        self, layer: int, x: F32, dt: F32, a: F32, d: F32, bias: F32, groups: int, states: int
    ) -> F32:
        rows, heads, mixed = len(x), len(a), groups * states
        v, b, c = np.split(x, [x.shape[1] - 2 * mixed, x.shape[1] - mixed], axis=1)
        v, step = v.reshape(rows, heads, -1), np.logaddexp(0, dt.astype(np.float64) + bias)
        b, c = (np.repeat(part.reshape(rows, groups, states), heads // groups, axis=1) for part in (b, c))
        state = self._states.setdefault((layer, "ssm"), np.zeros((heads, v.shape[2], states)))
        y = _scanned(v, b, c, step, a, state) + d[:, None] * v
        return y.astype(np.float32).reshape(rows, -1)

    def selective_scan(self, layer: int, x: F32, dt: F32, b: F32, c: F32, a: F32, d: F32, bias: F32) -> F32:
        rates, step = a.reshape(b.shape[1], -1), np.logaddexp(0, dt.astype(np.float64) + bias)
        state = self._states.setdefault((layer, "ssm"), np.zeros(rates.shape))
        y = np.empty_like(x)
        for t in range(len(x)):
            state *= np.exp(step[t] * rates)
            state += (step[t] * x[t]) * b[t][:, None]
            y[t] = c[t] @ state + d * x[t]
        return y

    def short_conv(
        self,
        layer: int,
        x: F32,
        weight: F32,
        bias: F32 | None = None,
        act: str = "none",
        gate_in: F32 | None = None,
        gate_out: F32 | None = None,
        at: int = 0,
    ) -> F32:
        inputs = x if gate_in is None else gate_in * x
        taps, key = weight.reshape(x.shape[1], -1).T, (layer, f"inputs from {at}")
        none = np.zeros((len(taps) - 1, x.shape[1]), np.float32)
        seen = np.concatenate([self._states.get(key, none), inputs])
        self._states[key] = seen[len(inputs) :]
        total = np.zeros(x.shape) if bias is None else np.broadcast_to(bias.astype(np.float64), x.shape)
        for j, tap in enumerate(taps):
            total = total + seen[j : j + len(x)].astype(np.float64) * tap
        y = silu(total.astype(np.float32)) if act == "silu" else total.astype(np.float32)
        return y if gate_out is None else gate_out * y


class NearVerbs:
    """Ops over a row and those just before it in its sequence; rows of a step are one unless its groups say so."""

    _pictures: Any

    def _begins(self, rows: int) -> NDArray[np.integer]:
        """Return the first row of each row's sequence: int [rows]."""
        groups = self._pictures.groups
        return np.zeros(rows, np.int64) if groups is None else np.searchsorted(groups, groups)

    def attend_near(
        self, q: F32, k: F32, v: F32, heads: int, back: F32, scale: F32, softcap: float = 0.0
    ) -> F32:
        queries, keys, values = (a.reshape(len(a), heads, -1).astype(np.float64) for a in (q, k, v))
        far = back.reshape(-1, *keys.shape[1:])
        out = np.empty_like(queries)
        for t, begin in enumerate(self._begins(len(q))):
            first = max(int(begin), t - len(far) + 1)
            near = keys[first : t + 1] + far[t - first :: -1]
            scores = np.einsum("hd,rhd->hr", queries[t] * scale, near)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            out[t] = np.einsum("hr,rhd->hd", softmax(scores), values[first : t + 1])
        return out.reshape(len(q), -1).astype(np.float32)

    def conv_near(self, x: F32, weight: F32) -> F32:
        taps = weight.reshape(x.shape[1], -1).T
        out = np.zeros_like(x)
        for t, begin in enumerate(self._begins(len(x))):
            first = max(int(begin), t - len(taps) + 1)
            out[t] = np.sum(x[first : t + 1] * taps[len(taps) - (t + 1 - first) :], axis=0)
        return out


def _scanned(x: F32, b: F32, c: F32, step: F64, a: F32, state: F64) -> F32:
    """h = exp(step * a) h + step x b', y = h c; x is [rows, heads, width], b and c [rows, heads, states].

    The state, [heads, width, states], changes in place.
    """
    y = np.empty_like(x)
    for t in range(len(x)):
        state *= np.exp(step[t] * a)[:, None, None]
        state += (step[t][:, None] * x[t])[:, :, None] * b[t][:, None, :]
        y[t] = np.einsum("hpn,hn->hp", state, c[t])
    return y


# --- ops of the gated delta rule: the recurrence token by token, and the gate after it --------------

UNIT_EPS = 1e-6  # of the unit length: x / sqrt(sum x^2 + eps), as transformers has it


class DeltaVerbs:
    """The verbs of a DeltaNet mixer."""

    _states: dict[tuple[int, str], NDArray[Any]]  # by layer and name

    def gated_delta(
        self,
        layer: int,
        qkv: Sequence[F32],
        decay: F32,
        beta: F32,
        a: F32,
        bias: F32,
        *,
        key_heads: int,
        keys: int,
        tiled: bool = False,
        beta_scale: float = 1.0,
        bound: float = 0.0,
    ) -> F32:
        q, k, v = split_heads(qkv, key_heads, keys, len(a), tiled)
        before = self._states.get((layer, "delta"), np.zeros((len(a), keys, v.shape[2])))
        b = beta_scale * sigmoid(beta).astype(np.float64)
        out, self._states[layer, "delta"] = delta_rule(q, k, v, decays(decay, a, bias, bound), b, before)
        return out.reshape(len(beta), -1).astype(np.float32)

    def norm_gate(self, y: F32, gate: F32, weight: F32 | None, eps: float = 0.0, *, act: str) -> None:
        if weight is not None:
            y[:] = rms_norm(y.reshape(len(y), -1, len(weight)), weight, eps).reshape(y.shape)
        y *= sigmoid(gate) if act == "sigmoid" else ACTIVATIONS[act](gate)

    def gate_heads(self, y: F32, gate: F32, *, act: str) -> None:
        by = sigmoid(gate) if act == "sigmoid" else np.logaddexp(0.0, gate.astype(np.float64))
        y *= np.repeat(by, y.shape[1] // gate.shape[1], axis=1).astype(np.float32)


def delta_rule(q: F64, k: F64, v: F64, g: F64, b: F64, state: F64) -> tuple[F64, F64]:
    """Return the outputs [rows, heads, values] and the state after them, [heads, keys, values].

    q, k: [rows, heads, keys]; v: [rows, heads, values]; b: [rows, heads]; g: [rows, heads, keys], or 1 for keys.
    """
    out = np.empty_like(v)
    for t in range(len(q)):
        state = state * g[t][..., None]
        d = b[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", state, k[t]))
        state = state + k[t][..., None] * d[:, None]
        out[t] = np.einsum("hkv,hk->hv", state, q[t])
    return out, state


def split_heads(
    qkv: Sequence[F32], key_heads: int, keys: int, heads: int, tiled: bool
) -> tuple[F64, F64, F64]:
    """Return q, k and v of every value head; q and k of unit length, q times keys ** -0.5."""
    wide = key_heads * keys
    q, k, v = (a.astype(np.float64) for a in np.split(np.concatenate(qkv, 1), (wide, 2 * wide), 1))
    numbers = np.arange(heads)
    of = numbers % key_heads if tiled else numbers // (heads // key_heads)
    q, k = (unit(a.reshape(len(a), key_heads, keys))[:, of] for a in (q, k))
    return q * keys**-0.5, k, v.reshape(len(v), heads, -1)


def unit(x: F64) -> F64:
    """x / sqrt(sum x^2 + eps) over the last axis."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + UNIT_EPS)


def decays(x: F32, a: F32, bias: F32, bound: float = 0.0) -> F64:
    """exp(a * softplus(x + bias)), or by a bound exp(bound * sigmoid(a * (x + bias))): [rows, heads, keys or 1]."""
    if bound:
        inputs = (x.astype(np.float64) + bias).reshape(len(x), len(a), -1)
        return np.exp(bound / (1 + np.exp(-a[:, None] * inputs)))
    steps = np.logaddexp(0.0, x.astype(np.float64) + bias).reshape(len(x), len(a), -1)
    return np.exp(a[:, None] * steps)
