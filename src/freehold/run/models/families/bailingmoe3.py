"""Ling 3 (Bailing hybrid): groups of layers of Kimi Delta Attention, each ended by latent attention, and experts.

As in Kimi Linear, but for these: the decay is exp(bound * sigmoid(exp(A) (f + dt))), its f and the gate of what a mixer
gives are one matrix each; latent attention turns by position, and a sigmoid of each head multiplies what it gives.
Experts are chosen within groups, by sigmoids with a correction. Makers' files and transformers' name modules apart.
Sources: transformers 5.24, models/bailing_hybrid; llama.cpp's loader and converter, read 2026-12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.latents import LatentSizes, gguf_latent, hf_latent
from freehold.run.models.config.mixtures import (
    MAX_EXPERTS,
    SIGMOID,
    gguf_shared_mixture,
    hf_groups,
    hf_mixture,
    listed_sparse,
)
from freehold.run.models.config.sizes import gguf_layers
from freehold.run.models.families.kimi_linear import DeltaAttention
from freehold.run.models.family import Buffer, Cut, Family, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts import DecoderEnds, GatedMlp
from freehold.run.models.parts.deltanet import MAX_KERNEL, DeltaSizes, convolved, recurrent_types
from freehold.run.models.parts.latent import LatentAttention
from freehold.run.models.parts.moe import Moe, MoeNames, apart, either, fused

GROUP = 6  # layers, of which the last has latent attention
BOUND = -5.0
MAX_LIMIT = 1e6
# What makers' files call keys, and modules.
KEYS = {
    "max_position_embeddings": "model_max_length",
    "n_group": "num_expert_group",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}
MODULES = {
    "self_attn.forget_gate": "attention",
    "self_attn.o_proj": "attention.dense",
    "self_attn": "attention",
}
GGUF_LISTS = ("attention.head_count_kv", "swiglu_clamp_exp", "swiglu_clamp_shexp")
LISTS = ("expert_swiglu_limit_list", "share_expert_swiglu_limit_list", "layer_types", "mlp_layer_types")
NAMES = MoeNames(
    experts=either(apart("mlp.experts.{e}"), fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
    correction=("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"),
    shared="mlp.shared_experts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BailingSizes(LatentSizes):
    """A decoder's sizes, its latent attention's, and its recurrent layers'."""

    delta: DeltaSizes
    recurrent: tuple[bool, ...]  # for each layer
    bound: float  # of a decay's logarithm
    limits: tuple[float, ...]  # of experts' gates, of each layer; 0: none
    shared_limits: tuple[float, ...]


def _delta(heads: int, dim: int, kernel: int) -> DeltaSizes:
    return DeltaSizes(key_heads=heads, value_heads=heads, key_dim=dim, value_dim=dim, kernel=kernel)


def config_from_gguf(meta: Fields, vocab: int) -> BailingSizes:
    """Read the keys under `bailingmoe3.`; layers without key/value heads are recurrent."""
    layers = gguf_layers(meta)
    meta = meta.cut(GGUF_LISTS, meta.integer("block_count", 1, MAX_LAYERS), layers)
    sizes = gguf_latent(meta, vocab)
    heads = meta.integer("attention.head_count", 1, MAX_HEADS)
    dim, kernel = meta.integer("kda.head_dim", 1, MAX_WIDTH), meta.integer("ssm.conv_kernel", 2, MAX_KERNEL)
    if not meta.flag("kda.safe_gate", True):
        raise UnsupportedModel(
            f"{meta.name('kda.safe_gate')} is false: a decay without a bound is not supported"
        )
    return BailingSizes(
        **sizes,
        delta=_delta(heads, dim, kernel),
        recurrent=tuple(not n for n in meta.each("attention.head_count_kv", layers, 0, MAX_HEADS)),
        mixture=gguf_shared_mixture(meta, sizes, SIGMOID),
        bound=meta.number("kda.gate_lower_bound", -1e3, -1e-3),
        limits=meta.numbers("swiglu_clamp_exp", layers, 0.0, MAX_LIMIT, 0.0),
        shared_limits=meta.numbers("swiglu_clamp_shexp", layers, 0.0, MAX_LIMIT, 0.0),
    )


def config_from_hf(config: Fields) -> BailingSizes:
    """Read config.json of a BailingHybridForCausalLM, as its makers or transformers write it."""
    for key, own in (("no_kda_lora", True), ("kda_safe_gate", True)):
        if not config.flag(key, own):
            raise UnsupportedModel(
                f"{key} is false: decays of low rank, or without a bound, are not supported"
            )
    config.require("gated_attention_proj_granularity_type", ("head_wise",), "head_wise")
    layers = config.integer("num_hidden_layers", 1, MAX_LAYERS)
    drafts = config.integer("num_nextn_predict_layers", 0, MAX_LAYERS, 0)
    config = config.called(KEYS).cut(LISTS, layers + drafts, layers).assuming(rms_norm_eps=1e-6)
    sizes = hf_latent(config)
    dim = config.integer("linear_head_dim", 1, MAX_WIDTH, _head_dim(config))
    kernel = config.integer("short_conv_kernel_size", 2, MAX_KERNEL, 4)
    every = config.integer("layer_group_size", 1, MAX_LAYERS, GROUP)
    stated = recurrent_types(config, layers)
    return BailingSizes(
        **sizes,
        delta=_delta(config.integer("num_attention_heads", 1, MAX_HEADS), dim, kernel),
        recurrent=stated or tuple((i + 1) % every != 0 for i in range(layers)),
        mixture=hf_mixture(
            config,
            "moe_intermediate_size",
            layers,
            shared=_shared(config),
            routing=hf_groups(config, replace(SIGMOID, scale=2.5)),
            sparse=listed_sparse(config, layers, min(2, layers)),
        ),
        bound=config.number("kda_lower_bound", -1e3, -1e-3, BOUND),
        limits=config.numbers("expert_swiglu_limit_list", layers, 0.0, MAX_LIMIT, 0.0),
        shared_limits=config.numbers("share_expert_swiglu_limit_list", layers, 0.0, MAX_LIMIT, 0.0),
    )


def _head_dim(config: Fields) -> int:
    return config.integer("head_dim", 1, MAX_WIDTH, 128)


def _shared(config: Fields) -> int:
    together = config.integer("n_shared_experts", 0, MAX_EXPERTS, 1)
    together *= config.integer("moe_intermediate_size", 1, MAX_WIDTH)
    return config.integer("moe_shared_expert_intermediate_size", 0, MAX_WIDTH, together)


def _called(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Give weights the names of makers' files, and of transformers' beside them."""

    def own(name: str | Cut) -> str | Cut:
        if isinstance(name, Cut):
            assert isinstance(name.name, str), "no weight here is joined"
            return replace(name, name=_renamed(name.name))
        return _renamed(name)

    return {key: replace(spec, hf=(*map(own, spec.hf), *spec.hf)) for key, spec in specs.items()}


def _renamed(name: str) -> str:
    for module, makers in MODULES.items():
        if name.startswith(f"{module}."):
            return makers + name.removeprefix(module)
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedDelta(DeltaAttention):
    """One layer's mixer whose decay has a bound, and whose gates are one matrix each."""

    bound: float

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the convolutions, what each head has, and the norms."""
        s, hidden = self.sizes, self.hidden
        specs = super(BoundedDelta, self).tensors()
        for key in ("f_a", "f_b", "g_a", "g_b"):
            del specs[key]
        specs |= {
            "f": matrix("ssm_f_a.weight", "self_attn.forget_gate.f_proj.weight", s.keys, hidden),
            "g": matrix("ssm_g_a.weight", "self_attn.g_proj.weight", s.values, hidden),
            "a": vector(
                Cut("ssm_a", (s.key_heads,), take=np.ravel),
                Cut("self_attn.forget_gate.A_log", (s.key_heads,), take=np.exp),
                s.key_heads,
            ),
            "dt": vector("ssm_dt.bias", "self_attn.forget_gate.dt_bias", s.keys),
        }
        specs = _called(specs)
        for i, key in enumerate("qkv"):
            specs[f"conv_{key}"] = self._convolution(i, key)
        return specs

    def _convolution(self, i: int, key: str) -> TensorSpec:
        """Declare weights that makers' files hold apart, and transformers' as one."""
        s = self.sizes
        gguf = Cut(f"ssm_conv1d_{key}.weight", (s.keys, s.kernel), take=np.ravel)
        own = Cut(f"attention.{key}_conv1d.weight", (s.keys, 1, s.kernel), take=np.ravel)
        part = slice(i * s.keys, (i + 1) * s.keys)
        one = Cut("self_attn.conv1d.weight", (3 * s.keys, 1, s.kernel), take=lambda v: v[part].reshape(-1))
        return vector(gguf, (own, one), s.keys * s.kernel)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, convolutions, recurrence, gated norm, output and residual."""
        s = self.sizes
        read = tuple(w[key] for key in ("q", "k", "v", "f", "g", "beta"))
        *qkv, decay, gate, beta = ops.linear(x, read, (None,) * 6, w["attn_norm"], self.eps)
        qkv = convolved(ops, layer, qkv, [w[f"conv_{key}"] for key in "qkv"], s.kernel)
        heads: dict[str, Any] = {"key_heads": s.key_heads, "keys": s.key_dim}
        y = ops.gated_delta(layer, qkv, decay, beta, w["a"], w["dt"], bound=self.bound, **heads)
        ops.norm_gate(y, gate, w["head_norm"], self.eps, act="sigmoid")
        ops.linear_add(y, w["out"], x)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledLatent(LatentAttention):
    """Latent attention under both names."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the same weights."""
        return _called(super(CalledLatent, self).tensors())


class CalledEnds(DecoderEnds):
    """A decoder's ends whose embedding has two names."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the same weights."""
        specs = super().tensors()
        names = ("model.word_embeddings.weight", *specs["embed"].hf)
        return specs | {"embed": replace(specs["embed"], hf=names)}


def layer(cfg: BailingSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its mixer, and experts or a dense MLP."""
    assert cfg.mixture is not None, "both readers give one"
    if cfg.recurrent[i]:
        mixer: LayerPart = BoundedDelta(hidden=cfg.hidden, sizes=cfg.delta, eps=cfg.eps, bound=cfg.bound)
    else:
        mixer = replace(CalledLatent.of(cfg, i), gate="g_proj")
    if cfg.mixture.sparse[i]:
        return mixer, Moe.of(cfg, NAMES, limit=cfg.limits[i], shared_limit=cfg.shared_limits[i])
    return mixer, GatedMlp.of(cfg, i, limit=cfg.shared_limits[i])


FAMILY = Family(
    gguf_architecture="bailingmoe3",
    hf_classes=("BailingHybridForCausalLM", "BailingMoeV3ForCausalLM"),
    model_types=("bailing_hybrid",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(LatentAttention, DeltaAttention, GatedMlp, Moe),
    layer=layer,
    ends=CalledEnds.of,
)
