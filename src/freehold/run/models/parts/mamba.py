"""Mamba-2: a mixer whose state is forgotten and written by a step size of each token and head.

    [z | mix | dt] = in n;  [v | B | C] = silu(conv(mix) + bias);  step = softplus(dt + dt_bias);  n = norm(x)
    h = exp(step * a) * h + step * v B';  y = h C + d * v;  x += out(norm(y * silu(z)))

Heads of a group share B and C, and the last norm is of each group, after the gate. Steps have no bounds: transformers
applies a config's limits to prompts and not to single tokens, so a config that states any is refused.
Source: arXiv 2405.21060.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import check_width, gguf_ssm_heads
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.norms import Read

F32 = NDArray[np.float32]

MAX_STATES = 512  # the kernel holds B and C of some tokens
MAX_KERNEL = 16
LANES = 16  # channels that the kernel computes together


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaSizes:
    """Sizes of a Mamba-2 mixer."""

    heads: int
    head_dim: int
    states: int
    groups: int
    kernel: int  # inputs of a channel that its convolution sees, the token's own among them

    def __post_init__(self) -> None:
        if self.heads % self.groups:
            raise BadModelFile(f"{self.groups} Mamba groups do not divide {self.heads} heads")
        if self.head_dim % LANES:
            raise UnsupportedModel(
                f"Mamba heads are {self.head_dim} wide; only multiples of {LANES} are supported"
            )
        check_width("Mamba", self.inner)

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def mixed(self) -> int:
        """Channels of the convolution: all heads, B and C."""
        return self.inner + 2 * self.groups * self.states


class MambaKeys(NamedTuple):
    """What a family's config.json calls the sizes."""

    heads: str
    head_dim: str
    states: str
    groups: str
    kernel: str


def gguf_mamba(meta: Fields) -> MambaSizes:
    """Read the keys under `ssm.`; `time_step_rank` holds the number of heads."""
    heads, width = gguf_ssm_heads(meta)
    return MambaSizes(
        heads=heads,
        head_dim=width,
        states=meta.integer("ssm.state_size", 1, MAX_STATES),
        groups=meta.integer("ssm.group_count", 1, MAX_HEADS),
        kernel=meta.integer("ssm.conv_kernel", 2, MAX_KERNEL),
    )


def hf_mamba(config: Fields, keys: MambaKeys, inner: int | None = None) -> MambaSizes:
    """Read a config.json; `inner`: the width of all heads, where the config states it in another way too."""
    refuse_step_limits(config)
    sizes = MambaSizes(
        heads=config.integer(keys.heads, 1, MAX_HEADS),
        head_dim=config.integer(keys.head_dim, 1, MAX_WIDTH),
        states=config.integer(keys.states, 1, MAX_STATES),
        groups=config.integer(keys.groups, 1, MAX_HEADS),
        kernel=config.integer(keys.kernel, 2, MAX_KERNEL),
    )
    if inner is not None and sizes.inner != inner:
        raise BadModelFile(
            f"{sizes.heads} Mamba heads of {sizes.head_dim} are {sizes.inner} wide; the config says {inner}"
        )
    return sizes


def refuse_step_limits(config: Fields) -> None:
    """Raise UnsupportedModel for limits of step sizes other than none (0 to infinity, in either spelling)."""
    limits = config.get("time_step_limit")
    if limits is None:
        return
    if not isinstance(limits, list) or len(limits) != 2:
        raise BadModelFile(
            f"{config.name('time_step_limit')} is {str(limits)[:60]}; expected two numbers, the least and the greatest"
        )
    low, high = (v.get("__float__") if isinstance(v, dict) else v for v in limits)
    if low != 0 or high not in (math.inf, "Infinity"):
        raise UnsupportedModel(
            f"{config.name('time_step_limit')} is {str(limits)[:60]}; step sizes without limits alone are supported"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2(LayerPart):
    """One layer's mixer."""

    kinds = frozenset({"mamba2"})

    hidden: int
    sizes: MambaSizes
    eps: float
    conv_bias: bool = True
    gated_norm: bool | None = True  # whether a norm follows the gate; None: where the file has one
    residual: float = 1.0  # of what is added to x

    @property
    def keeps(self) -> LayerSpec:
        """A state, and the last inputs of the convolution."""
        s = self.sizes
        return LayerSpec("mamba2", state=s.inner * s.states, conv=(s.kernel - 1) * s.mixed)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the convolution, what each head has, and the norms."""
        s, hidden = self.sizes, self.hidden
        return {
            "attn_norm": vector("attn_norm.weight", "input_layernorm.weight", hidden),
            "z": self._rows(0, s.inner),
            "mix": self._rows(s.inner, s.mixed),
            "dt": self._rows(s.inner + s.mixed, s.heads),
            "out": matrix("ssm_out.weight", "mamba.out_proj.weight", hidden, s.inner),
            "dt_bias": vector("ssm_dt.bias", "mamba.dt_bias", s.heads),
            "a": vector(
                self._head("ssm_a"),
                Cut("mamba.A_log", (s.heads,), take=lambda log: -np.exp(log)),
                s.heads,
            ),
            "d": vector(self._head("ssm_d"), "mamba.D", s.heads),
            **self._convolution(),
            **self._gated_norm(),
        }

    def _rows(self, first: int, rows: int) -> TensorSpec:
        """Declare rows of the one input projection."""
        whole = (self.sizes.inner + self.sizes.mixed + self.sizes.heads, self.hidden)
        part = range(first, first + rows)
        return TensorSpec.of_rows("ssm_in.weight", "mamba.in_proj.weight", whole, part, adaptable=False)

    def _head(self, name: str) -> Cut:
        """Give a GGUF's value of each head, a column there."""
        return Cut(name, (self.sizes.heads, 1), take=np.ravel)

    def _convolution(self) -> dict[str, TensorSpec]:
        channels, kernel = self.sizes.mixed, self.sizes.kernel
        specs = {
            "conv": TensorSpec.of_convolution("ssm_conv1d.weight", "mamba.conv1d.weight", channels, kernel)
        }
        if self.conv_bias:
            specs["conv_bias"] = vector("ssm_conv1d.bias", "mamba.conv1d.bias", channels)
        return specs

    def _gated_norm(self) -> dict[str, TensorSpec]:
        inner, groups = self.sizes.inner, self.sizes.groups
        if self.gated_norm is False:
            return {}
        stored = Cut("ssm_norm.weight", (groups, inner // groups), take=np.ravel)
        names = stored, "mamba.norm.weight"
        return {"gated_norm": vector(*names, inner, optional=self.gated_norm is None)}

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, convolution, recurrence, gate, output and residual."""
        self.add(ops, layer, (x, w["attn_norm"]), x, w)

    def add(self, ops: Ops, layer: int, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm: a mixer beside this one may read the same rows."""
        (rows, norm), s = read, self.sizes
        z, mix, dt = ops.linear(rows, (w["z"], w["mix"], w["dt"]), (None,) * 3, norm, self.eps)
        mix = ops.short_conv(layer, mix, w["conv"], w.get("conv_bias"), act="silu")
        y = ops.ssm_scan(layer, mix, dt, w["a"], w["d"], w["dt_bias"], s.groups, s.states)
        ops.gate_norm(y, z, w.get("gated_norm"), self.eps, s.groups)
        ops.linear_add(y, w["out"], x, scale=self.residual)
