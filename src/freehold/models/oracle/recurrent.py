"""The oracle's ops over recurrent states: one token after another, in NumPy.

Knows states by layer and name, zeros where there is none yet; knows no key and no value.
Path: oracle.NumpyOps -> RecurrentVerbs
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.models.oracle.arithmetic import rms_norm, silu

F32 = NDArray[np.float32]
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
