"""Gated DeltaNet: a mixer whose state is a matrix a head, corrected by each token toward its value.

    [q | k | v] = silu(conv(m n)),  q and k of unit length in each head, q times key_dim ** -0.5;  n = norm(x)
    g = exp(a * softplus(alpha n + dt)),  b = sigmoid(beta n), twice that where states may oscillate
    S = g S,  d = b (v - S' k),  S = S + k d',  s = S' q;  x += out(norm(s) * silu(z n))

Several value heads may share a key head. Files differ in how they divide the projections, and in the order of value
heads: grouped by key head, or in turns (qwen35's GGUF), which no tensor tells and the family must.
Source: arXiv 2412.06464.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import Sizes, check_width, gguf_sizes, gguf_ssm_heads, hf_decoder
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Turns, Values, matrix, vector
from freehold.run.models.parts.norms import RMS, NormForm

F32 = NDArray[np.float32]

MAX_KERNEL = 16
MAX_KEYS = 4096
LANES = 16  # columns of a state that lie together

ProjectionLayout = Literal[
    "apart",  # q, k and v as one matrix; z, alpha and beta have their own
    "grouped",  # of each key head q, k, its v and its z; and its betas, its alphas: Qwen3-Next
    "single",  # all six have their own, and the convolution is three: OLMo Hybrid
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaSizes:
    """Sizes of a DeltaNet mixer."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int  # inputs of a channel that its convolution sees, the token's own among them

    def __post_init__(self) -> None:
        if self.value_heads % self.key_heads:
            raise BadModelFile(f"{self.key_heads} key heads do not divide {self.value_heads} value heads")
        if self.key_dim % 2 or self.key_dim > MAX_KEYS:
            raise UnsupportedModel(
                f"DeltaNet's key heads are {self.key_dim} wide; only even widths up to {MAX_KEYS} are supported"
            )
        if self.keys > MAX_WIDTH:
            raise BadModelFile(f"DeltaNet's keys are {self.keys} wide together; the limit is {MAX_WIDTH}")
        check_width("DeltaNet", self.values)

    @property
    def keys(self) -> int:
        """Width of all key heads."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all value heads."""
        return self.value_heads * self.value_dim

    @property
    def mixed(self) -> int:
        """Channels of the convolution: q, k and v."""
        return 2 * self.keys + self.values

    @property
    def state(self) -> int:
        """Values of the state of all heads; the kernel's columns are in blocks."""
        return self.value_heads * self.key_dim * -(-self.value_dim // LANES) * LANES

    def spec(self, kind: str) -> LayerSpec:
        """What a layer keeps of a sequence: its state, and the last inputs of the convolution."""
        return LayerSpec(kind, state=self.state, conv=(self.kernel - 1) * self.mixed)

    def rows(self, *counts: int) -> list[np.ndarray]:
        """Give the row numbers of each part of a matrix that holds, for each key head, `counts` rows of each part."""
        index = np.arange(self.key_heads * sum(counts)).reshape(self.key_heads, -1)
        return [part.ravel() for part in np.split(index, np.cumsum(counts)[:-1], axis=1)]


def gguf_delta(meta: Fields) -> DeltaSizes:
    """Read the keys under `ssm.`, whose names are a Mamba's."""
    heads, width = gguf_ssm_heads(meta)
    return DeltaSizes(
        key_heads=meta.integer("ssm.group_count", 1, MAX_HEADS),
        value_heads=heads,
        key_dim=meta.integer("ssm.state_size", 1, MAX_WIDTH),
        value_dim=width,
        kernel=meta.integer("ssm.conv_kernel", 2, MAX_KERNEL),
    )


def hf_delta(config: Fields, **assumed: int) -> DeltaSizes:
    """Read a config.json's `linear_*` keys; the keywords are what the family's class assumes."""
    limits = {"num_key_heads": MAX_HEADS, "num_value_heads": MAX_HEADS}
    limits |= {"key_head_dim": MAX_WIDTH, "value_head_dim": MAX_WIDTH}
    sizes = {
        key: config.integer(f"linear_{key}", 1, high, *([assumed[key]] if key in assumed else []))
        for key, high in limits.items()
    }
    return DeltaSizes(
        key_heads=sizes["num_key_heads"],
        value_heads=sizes["num_value_heads"],
        key_dim=sizes["key_head_dim"],
        value_dim=sizes["value_head_dim"],
        kernel=config.integer("linear_conv_kernel_dim", 2, MAX_KERNEL, 4),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNet(LayerPart):
    """One layer's mixer."""

    kinds = frozenset({"deltanet"})

    hidden: int
    sizes: DeltaSizes
    eps: float
    norm: NormForm = RMS  # before the projections
    norm_name: str = "input_layernorm"  # in safetensors
    stored: ProjectionLayout = "apart"
    tiled: bool = False  # value heads in turns of key heads; else those of a key head are consecutive
    beta_scale: float = 1.0  # 2: a state may change its sign along a key
    head_eps: float = 0.0  # of the norm of each head; 0: eps

    @property
    def keeps(self) -> LayerSpec:
        """A state, and the last inputs of the convolution."""
        return self.sizes.spec("deltanet")

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the convolution, what each head has, and the norms."""
        s, hidden = self.sizes, self.hidden
        own = self.norm.tensors("attn_norm", "attn_norm", self.norm_name, hidden)
        single = self.stored == "single"
        convolution: str | tuple[str, ...] = "linear_attn.conv1d.weight"
        if single:
            convolution = tuple(f"linear_attn.{key}_conv1d.weight" for key in "qkv")
        log = Cut("linear_attn.A_log", (s.value_heads,), take=lambda log: -np.exp(log))
        projections = {"apart": self._apart, "grouped": self._grouped, "single": self._single}
        return own | {
            **projections[self.stored](),
            "conv": TensorSpec.of_convolution("ssm_conv1d.weight", convolution, s.mixed, s.kernel),
            "a": vector("ssm_a", log, s.value_heads),
            "dt": vector("ssm_dt.bias", "linear_attn.dt_bias", s.value_heads),
            "head_norm": vector(
                "ssm_norm.weight", f"linear_attn.{'o_norm' if single else 'norm'}.weight", s.value_dim
            ),
            "out": matrix(
                "ssm_out.weight",
                f"linear_attn.{'o_proj' if single else 'out_proj'}.weight",
                hidden,
                s.values,
                turns=self._turns(1, s.value_dim),
            ),
        }

    def _turns(self, axis: int, width: int, first: int = 0) -> Turns | None:
        """Say where value heads lie that the formats order differently: where they have projections of their own."""
        s = self.sizes
        alike = self.stored != "apart" or s.value_heads == s.key_heads
        return None if alike else Turns(axis, s.key_heads, s.value_heads // s.key_heads, width, first)

    def _apart(self) -> dict[str, TensorSpec]:
        s = self.sizes
        names = {
            "qkv": ("attn_qkv", "in_proj_qkv", s.mixed, self._turns(0, s.value_dim, 2 * s.keys)),
            "z": ("attn_gate", "in_proj_z", s.values, self._turns(0, s.value_dim)),
            "alpha": ("ssm_alpha", "in_proj_a", s.value_heads, self._turns(0, 1)),
            "beta": ("ssm_beta", "in_proj_b", s.value_heads, self._turns(0, 1)),
        }
        return {
            key: matrix(f"{gguf}.weight", f"linear_attn.{hf}.weight", rows, self.hidden, turns=turns)
            for key, (gguf, hf, rows, turns) in names.items()
        }

    def _grouped(self) -> dict[str, TensorSpec]:
        """Take rows of the fused matrices; a GGUF has q, k and v together and z by itself, an early one has not."""
        s = self.sizes
        per = s.value_heads // s.key_heads
        q, k, v, z = s.rows(s.key_dim, s.key_dim, per * s.value_dim, per * s.value_dim)
        beta, alpha = s.rows(per, per)
        fused = {"qkv": np.concatenate([q, k, v]), "z": z}
        names = {"qkv": "attn_qkv.weight", "z": "attn_gate.weight"}
        specs = {}
        for key, rows in fused.items():
            whole = (2 * s.keys + 2 * s.values, self.hidden)
            early, hf = (
                Cut(name, whole, rows=rows) for name in ("ssm_in.weight", "linear_attn.in_proj_qkvz.weight")
            )
            specs[key] = matrix((names[key], early), hf, len(rows), self.hidden)
        both = "ssm_ba.weight", "linear_attn.in_proj_ba.weight"
        for key, rows in {"alpha": alpha, "beta": beta}.items():
            specs[key] = TensorSpec.of_rows(*both, (2 * s.value_heads, self.hidden), rows)
        return specs

    def _single(self) -> dict[str, TensorSpec]:
        s = self.sizes
        rows = {"q": s.keys, "k": s.keys, "v": s.values}
        names = {"z": "g", "alpha": "a", "beta": "b"}
        rows |= {"z": s.values, "alpha": s.value_heads, "beta": s.value_heads}
        return {
            key: matrix(None, f"linear_attn.{names.get(key, key)}_proj.weight", count, self.hidden)
            for key, count in rows.items()
        }

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, convolution, recurrence, gated norm, output and residual."""
        s = self.sizes
        rows, norm = self.norm.before(ops, x, w, "attn_norm", self.eps)
        mixed = tuple(w[key] for key in ("qkv", "q", "k", "v") if key in w)
        *qkv, z, alpha, beta = ops.linear(
            rows, (*mixed, w["z"], w["alpha"], w["beta"]), (None,) * (len(mixed) + 3), norm, self.eps
        )
        # The convolution's weights are divided as the projections are.
        ends = np.array([s.keys, 2 * s.keys]) if self.stored == "single" else np.array([], int)
        weights = np.split(w["conv"], ends * s.kernel)
        y = ops.gated_delta(
            layer,
            convolved(ops, layer, qkv, weights, s.kernel),
            alpha,
            beta,
            w["a"],
            w["dt"],
            key_heads=s.key_heads,
            keys=s.key_dim,
            tiled=self.tiled,
            beta_scale=self.beta_scale,
        )
        ops.norm_gate(y, z, w["head_norm"], self.head_eps or self.eps, act="silu")
        ops.linear_add(y, w["out"], x)


def convolved(
    ops: Ops, layer: int, qkv: Sequence[Buffer], weights: Sequence[F32], kernel: int
) -> list[Buffer]:
    """Convolve q, k and v, which are one buffer or three; their inputs are consecutive in the layer's state."""
    at, out = 0, []
    for x, weight in zip(qkv, weights, strict=True):
        out.append(ops.short_conv(layer, x, weight, None, act="silu", at=at))
        at += len(weight) // kernel * (kernel - 1)
    return out


# --- sizes of a decoder that mixes by DeltaNet in most layers, by attention in the others -----------

INTERVAL = 4  # of layers, one attends


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridSizes(Sizes):
    """A decoder's sizes, and its recurrent layers'."""

    delta: DeltaSizes
    recurrent: tuple[bool, ...]  # for each layer, whether it is a DeltaNet
    tiled: bool = False  # the file's order of value heads: see DeltaNet


def gguf_hybrid(meta: Fields, vocab: int) -> dict[str, Any]:
    """Read a GGUF's keys as arguments for HybridSizes."""
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    return sizes | {"delta": gguf_delta(meta), "recurrent": _gguf_layers(meta, len(sizes["heads"]))}


def _gguf_layers(meta: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers are recurrent; a file lists its drafts' layers too, which attend."""
    listed = meta.get("attention.recurrent_layers")
    if listed is None:
        interval = meta.integer("full_attention_interval", 1, MAX_LAYERS, INTERVAL)
        return tuple((i + 1) % interval != 0 for i in range(layers))
    values = listed.tolist() if isinstance(listed, np.ndarray) else listed
    flags = values if isinstance(values, list) else []
    if len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        name = meta.name("attention.recurrent_layers")
        raise BadModelFile(f"{name} is {str(values)[:60]}; expected true or false for each layer")
    return tuple(bool(flag) for flag in flags[:layers])


def hf_hybrid(config: Fields, linear: dict[str, int] | None = None, **assumed: Any) -> dict[str, Any]:
    """Read a config.json as arguments for HybridSizes; the keywords are what the family's class assumes."""
    config.refuse("attention_bias", "a bias on attention")
    config.require("hidden_act", ("silu",), "silu")
    sizes = hf_decoder(config, **assumed)
    layers = len(sizes["heads"])
    recurrent = recurrent_types(config, layers)
    if recurrent is None:
        interval = config.integer("full_attention_interval", 1, MAX_LAYERS, INTERVAL)
        recurrent = tuple((i + 1) % interval != 0 for i in range(layers))
    return sizes | {"delta": hf_delta(config, **linear or {}), "recurrent": recurrent}


def recurrent_types(config: Fields, layers: int) -> tuple[bool, ...] | None:
    """Say which layers are recurrent by a config.json's `layer_types`, None where it has none."""
    kinds = config.texts("layer_types", layers)
    for kind in kinds or ():
        if kind not in ("linear_attention", "full_attention"):
            raise UnsupportedModel(f"layer_types names {kind!r}; supported: linear_attention, full_attention")
    return None if kinds is None else tuple(kind == "linear_attention" for kind in kinds)
