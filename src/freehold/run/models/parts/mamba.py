"""Mamba-2 and Mamba-1: mixers whose state is forgotten and written by a step size of each token and head, or channel.

    [z | mix | dt] = in n;  [v | B | C] = silu(conv(mix) + bias);  step = softplus(dt + dt_bias);  n = norm(x)
    h = exp(step * a) * h + step * v B';  y = h C + d * v;  x += out(norm(y * silu(z)))

Heads of a group share B and C, and the last norm is of each group, after the gate. Steps have no bounds: transformers
applies a config's limits to prompts and not to single tokens, so a config that states any is refused.
Mamba-1, whose steps and rates of forgetting are each channel's, and each state's, own:

    [v | z] = in n;  v = silu(conv(v) + bias);  [r | B | C] = Wx v;  step = softplus(Wdt r + dt_bias)
    h = exp(step * a) * h + step * v B';  y = h C + d * v;  x += out(y * silu(z))

Sources: arXiv 2405.21060 (Mamba-2), 2312.00752 (Mamba-1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import WIDTH_STEP, check_width, gguf_ssm_heads
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
            f"{config.name('time_step_limit')} is {str(limits)[:60]}; only step sizes without limits are supported"
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


# --- Mamba-1 -----------------------------------------------------------------------------------------

InnerNorm = Literal[
    "none",
    "bare",  # RMS norms of r, B and C, without weights
    "weighted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveSizes:
    """Sizes of a Mamba-1 mixer."""

    inner: int  # channels
    states: int  # of each
    rank: int  # width that step sizes pass on their way
    kernel: int  # inputs of a channel that its convolution sees

    def __post_init__(self) -> None:
        check_width("Mamba", self.inner)

    @property
    def padded(self) -> int:
        """The rank, filled up to what kernels take."""
        return -(-self.rank // WIDTH_STEP) * WIDTH_STEP


def gguf_selective(meta: Fields) -> SelectiveSizes:
    """Read the keys under `ssm.`."""
    return SelectiveSizes(
        inner=meta.integer("ssm.inner_size", 1, MAX_WIDTH),
        states=meta.integer("ssm.state_size", 1, MAX_STATES),
        rank=meta.integer("ssm.time_step_rank", 1, MAX_WIDTH),
        kernel=meta.integer("ssm.conv_kernel", 2, MAX_KERNEL),
    )


def hf_selective(config: Fields, hidden: int, prefix: str = "", **keys: str) -> SelectiveSizes:
    """Read a config.json, whose keys begin with `prefix`; "auto" is a rank of a sixteenth of the hidden width."""
    rank: Any = config.get(keys["rank"])
    if rank in (None, "auto"):
        rank = -(-hidden // 16)
    return SelectiveSizes(
        inner=config.integer(f"{prefix}expand", 1, 64, 2) * hidden,
        states=config.integer(keys["states"], 1, MAX_STATES, 16),
        rank=Fields({keys["rank"]: rank}).integer(keys["rank"], 1, MAX_WIDTH),
        kernel=config.integer(keys["kernel"], 2, MAX_KERNEL, 4),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1(LayerPart):
    """One layer's mixer with steps of each channel."""

    kinds = frozenset({"mamba2"})

    hidden: int
    sizes: SelectiveSizes
    eps: float
    conv_bias: bool = True
    inner_norm: InnerNorm = "none"
    inner_eps: float = 1e-6  # of those norms

    def __post_init__(self) -> None:
        if self.inner_norm != "none" and self.sizes.rank != self.sizes.padded:
            raise UnsupportedModel(
                f"a rank of {self.sizes.rank} that is normalised; only multiples of {WIDTH_STEP} are supported"
            )

    @property
    def keeps(self) -> LayerSpec:
        """A state, and the last inputs of the convolution."""
        s = self.sizes
        return LayerSpec("mamba2", state=s.inner * s.states, conv=(s.kernel - 1) * s.inner)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the convolution, what each channel has, and the norms."""
        s, hidden = self.sizes, self.hidden
        names, whole = ("ssm_in.weight", "mamba.in_proj.weight"), (2 * s.inner, hidden)
        halves = {"v": range(s.inner), "z": range(s.inner, 2 * s.inner)}
        specs = {
            key: TensorSpec.of_rows(*names, whole, rows, adaptable=False) for key, rows in halves.items()
        }
        conv = TensorSpec.of_convolution("ssm_conv1d.weight", "mamba.conv1d.weight", s.inner, s.kernel)
        if self.conv_bias:
            specs["conv_bias"] = vector("ssm_conv1d.bias", "mamba.conv1d.bias", s.inner)
        shape, size = (s.inner, s.states), s.inner * s.states
        return specs | {
            "attn_norm": vector("attn_norm.weight", "input_layernorm.weight", hidden),
            "out": matrix("ssm_out.weight", "mamba.out_proj.weight", hidden, s.inner),
            "conv": conv,
            "dt": self._steps(),
            "dt_bias": vector("ssm_dt.bias", "mamba.dt_proj.bias", s.inner),
            "a": vector(
                Cut("ssm_a", shape, take=lambda a: a.T.reshape(-1)),
                Cut("mamba.A_log", shape, take=lambda log: -np.exp(log).T.reshape(-1)),
                size,
            ),
            "d": vector("ssm_d", "mamba.D", s.inner),
            **self._mixed(),
        }

    def _mixed(self) -> dict[str, TensorSpec]:
        """Declare what gives r, B and C. Rows that fill r up are any: they meet zeros."""
        s = self.sizes
        whole = (s.rank + 2 * s.states, s.inner)
        rank: NDArray[np.int64] = np.arange(s.padded)
        rank[s.rank :] = 0
        rows: dict[str, Any] = {
            "r": rank,
            "b": range(s.rank, s.rank + s.states),
            "c": range(s.rank + s.states, whole[0]),
        }
        names = "ssm_x.weight", "mamba.x_proj.weight"
        specs = {key: TensorSpec.of_rows(*names, whole, own, adaptable=False) for key, own in rows.items()}
        if self.inner_norm == "weighted":
            for key, name, width in (("r", "dt", s.rank), ("b", "b", s.states), ("c", "c", s.states)):
                own = f"ssm_{name}_norm.weight", f"mamba.{name}_layernorm.weight"
                specs[f"{key}_norm"] = vector(*own, width)
        return specs

    def _steps(self) -> TensorSpec:
        s, names = self.sizes, ("ssm_dt.weight", "mamba.dt_proj.weight")
        if s.rank == s.padded:
            return matrix(*names, s.inner, s.rank, adaptable=False)

        def filled(values: F32) -> F32:
            return np.pad(values, ((0, 0), (0, s.padded - s.rank)))

        stored = [Cut(name, (s.inner, s.rank), take=filled) for name in names]
        return matrix(stored[0], stored[1], s.inner, s.padded, adaptable=False)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, convolution, recurrence, gate, output and residual."""
        v, z = ops.linear(x, (w["v"], w["z"]), (None, None), w["attn_norm"], self.eps)
        v = ops.short_conv(layer, v, w["conv"], w.get("conv_bias"), act="silu")
        r, b, c = ops.linear(v, (w["r"], w["b"], w["c"]), (None,) * 3)
        if self.inner_norm != "none":
            r, b, c = (self._normed(ops, each, key, w) for each, key in ((r, "r"), (b, "b"), (c, "c")))
        (dt,) = ops.linear(r, (w["dt"],), (None,))
        y = ops.selective_scan(layer, v, dt, b, c, w["a"], w["d"], w["dt_bias"])
        ops.gate_norm(y, z, None)
        ops.linear_add(y, w["out"], x)

    def _normed(self, ops: Ops, rows: Buffer, key: str, w: Values) -> Buffer:
        width = self.sizes.rank if key == "r" else self.sizes.states
        weight = w[f"{key}_norm"] if self.inner_norm == "weighted" else np.ones(width, np.float32)
        return ops.norm(rows, weight, self.inner_eps)
