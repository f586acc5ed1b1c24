"""Kimi Linear: three layers of Kimi Delta Attention, one of latent attention without positions, experts in all but one.

The router is DeepSeek-V3's: sigmoids, compared with a correction, weights divided by their sum and scaled.
Source: arXiv 2510.26692.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.latents import LatentSizes, gguf_latent, hf_latent
from freehold.run.models.config.mixtures import SIGMOID, gguf_latent_mixture, hf_latent_mixture
from freehold.run.models.family import Buffer, Cut, Family, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts import DecoderEnds, GatedMlp
from freehold.run.models.parts.deltanet import MAX_KERNEL, DeltaSizes, convolved, recurrent_types
from freehold.run.models.parts.latent import LatentAttention
from freehold.run.models.parts.moe import Moe, MoeNames, apart

# --- Kimi Delta Attention: gated DeltaNet whose decay has a value for each key ----------------------
# Its decay comes from a projection of low rank.
#     q, k, v = silu(conv(Wq n)), silu(conv(Wk n)), silu(conv(Wv n)),  n = norm(x)
#     g = exp(a * softplus(Fb Fa n + dt)),  b = sigmoid(beta n)
#     S = g S,  d = b (v - S' k),  S = S + k d',  s = S' q;  x += o(norm(s) * sigmoid(Gb Ga n))
# q and k as DeltaNet has them; `a` is a head's, g and dt are a key's. Key heads and value heads are alike.


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaAttention(LayerPart):
    """One layer's mixer."""

    kinds = frozenset({"linear"})

    hidden: int
    sizes: DeltaSizes
    eps: float

    @property
    def keeps(self) -> LayerSpec:
        """A state, and the last inputs of the three convolutions."""
        return self.sizes.spec("linear")

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the convolutions, what each head has, and the norms."""
        s, hidden = self.sizes, self.hidden
        specs = {
            "attn_norm": vector("attn_norm.weight", "input_layernorm.weight", hidden),
            "a": vector(
                Cut("ssm_a", (s.key_heads,), take=np.ravel),
                Cut("self_attn.A_log", (s.key_heads,), take=lambda log: -np.exp(log).ravel()),
                s.key_heads,
            ),
            "dt": vector("ssm_dt.bias", "self_attn.dt_bias", s.keys),
            "head_norm": vector("ssm_norm.weight", "self_attn.o_norm.weight", s.value_dim),
            "beta": matrix("ssm_beta.weight", "self_attn.b_proj.weight", s.key_heads, hidden),
            "out": matrix("attn_output.weight", "self_attn.o_proj.weight", hidden, s.values),
        }
        for key in "qkv":
            specs[key] = matrix(f"attn_{key}.weight", f"self_attn.{key}_proj.weight", s.keys, hidden)
            names = f"ssm_conv1d_{key}.weight", f"self_attn.{key}_conv1d.weight"
            gguf, hf = (Cut(name, (s.keys, s.kernel), take=np.ravel) for name in names)
            specs[f"conv_{key}"] = vector(gguf, hf, s.keys * s.kernel)
        for key in "fg":
            for half, shape in (("a", (s.key_dim, hidden)), ("b", (s.keys, s.key_dim))):
                names = f"ssm_{key}_{half}.weight", f"self_attn.{key}_{half}_proj.weight"
                specs[f"{key}_{half}"] = matrix(*names, *shape)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, convolutions, recurrence, gated norm, output and residual."""
        s = self.sizes
        read = tuple(w[key] for key in ("q", "k", "v", "f_a", "g_a", "beta"))
        *qkv, forget, gate, beta = ops.linear(x, read, (None,) * 6, w["attn_norm"], self.eps)
        (decay,) = ops.linear(forget, (w["f_b"],), (None,))
        (gate,) = ops.linear(gate, (w["g_b"],), (None,))
        qkv = convolved(ops, layer, qkv, [w[f"conv_{key}"] for key in "qkv"], s.kernel)
        y = ops.gated_delta(layer, qkv, decay, beta, w["a"], w["dt"], key_heads=s.key_heads, keys=s.key_dim)
        ops.norm_gate(y, gate, w["head_norm"], self.eps, act="sigmoid")
        ops.linear_add(y, w["out"], x)


# --- the family -------------------------------------------------------------------------------------

BLOCK = "block_sparse_moe"
NAMES = MoeNames(
    experts=apart(f"{BLOCK}.experts.{{e}}", "w1", "w3", "w2"),
    router=f"{BLOCK}.gate.weight",
    correction=f"{BLOCK}.gate.e_score_correction_bias",
    shared=f"{BLOCK}.shared_experts",
)
# What published files call the keys that DeepSeek named.
KEYS = {
    "max_position_embeddings": "model_max_length",
    "norm_topk_prob": "moe_renormalize",
    "n_group": "num_expert_group",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiSizes(LatentSizes):
    """A decoder's sizes, its latent attention's, and its recurrent layers'."""

    delta: DeltaSizes
    recurrent: tuple[bool, ...]  # for each layer


class FirstMlp(GatedMlp):
    """A dense MLP that transformers writes back under the name of the experts'."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare what an MLP has, its matrices under both names."""
        specs = super().tensors()
        for key in ("gate", "up", "down"):
            name = f"mlp.{key}_proj.weight"
            specs[key] = replace(specs[key], hf=(name, name.replace("mlp", BLOCK)))
        return specs


def config_from_gguf(meta: Fields, vocab: int) -> KimiSizes:
    """Read the keys under `kimi-linear.`; layers without key/value heads are recurrent."""
    sizes = gguf_latent(meta, vocab, turns=False)
    layers = len(sizes["heads"])
    attends = meta.each("attention.head_count_kv", layers, 0, MAX_HEADS)
    dim = meta.integer("kda.head_dim", 1, MAX_WIDTH)
    kernel = meta.integer("ssm.conv_kernel", 2, MAX_KERNEL)
    return KimiSizes(
        **sizes,
        delta=_delta(meta.integer("attention.head_count", 1, MAX_HEADS), dim, kernel),
        recurrent=tuple(not heads for heads in attends),
        mixture=gguf_latent_mixture(meta, sizes, SIGMOID),
    )


def config_from_hf(config: Fields) -> KimiSizes:
    config = config.called(KEYS).assuming(first_k_dense_replace=1)
    config.require("moe_router_activation_func", ("sigmoid",), "sigmoid")
    if not config.flag("mla_use_nope", True):
        raise UnsupportedModel("mla_use_nope is false: attention that turns by position is not supported")
    sizes: dict[str, Any] = hf_latent(config, turns=False)
    linear = config.section("linear_attn_config") or Fields({})
    names = {"num_heads": "linear_num_heads", "head_dim": "linear_head_dim"}
    names |= {"short_conv_kernel_size": "linear_conv_kernel_dim"}
    linear = linear.assuming(**{key: config.get(name) for key, name in names.items()})
    kernel = linear.integer("short_conv_kernel_size", 2, MAX_KERNEL, 4)
    return KimiSizes(
        **sizes,
        delta=_delta(
            linear.integer("num_heads", 1, MAX_HEADS), linear.integer("head_dim", 1, MAX_WIDTH), kernel
        ),
        recurrent=_recurrent(config, linear, len(sizes["heads"])),
        mixture=hf_latent_mixture(config, sizes, SIGMOID),
    )


def _delta(heads: int, dim: int, kernel: int) -> DeltaSizes:
    return DeltaSizes(key_heads=heads, value_heads=heads, key_dim=dim, value_dim=dim, kernel=kernel)


def _recurrent(config: Fields, linear: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers are recurrent: by their types, or by the numbers, from 1 on, of both sorts."""
    if (stated := recurrent_types(config, layers)) is not None:
        return stated
    listed = {name: linear.get(name) for name in ("kda_layers", "full_attn_layers")}
    for name, numbers in listed.items():
        if not isinstance(numbers, list) or any(type(n) is not int for n in numbers):
            raise BadModelFile(
                f"linear_attn_config.{name} is {str(numbers)[:60]}; expected numbers of layers"
            )
    if sorted(listed["kda_layers"] + listed["full_attn_layers"]) != list(range(1, layers + 1)):
        raise BadModelFile(f"kda_layers and full_attn_layers do not name each of {layers} layers once")
    return tuple(i + 1 in listed["kda_layers"] for i in range(layers))


def layer(cfg: KimiSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its mixer, and experts or a dense MLP."""
    assert cfg.mixture is not None, "a family of experts reads their sizes"
    mixer = (
        DeltaAttention(hidden=cfg.hidden, sizes=cfg.delta, eps=cfg.eps)
        if cfg.recurrent[i]
        else LatentAttention.of(cfg, i)
    )
    return mixer, Moe.of(cfg, NAMES) if cfg.mixture.sparse[i] else FirstMlp.of(cfg, i)


FAMILY = Family(
    gguf_architecture="kimi-linear",
    hf_classes=("KimiLinearForCausalLM",),
    model_types=("kimi_linear",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(LatentAttention, DeltaAttention, GatedMlp, Moe),
    layer=layer,
    ends=DecoderEnds.of,
)
