"""Kimi Linear: three layers of Kimi Delta Attention, one of latent attention without positions, experts in all but one.

The router is DeepSeek-V3's: sigmoids, compared with a correction, weights divided by their sum and scaled.
Source: arXiv 2510.26692.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats.fields import MAX_HEADS, MAX_WIDTH, Fields
from freehold.models.config.hybrids import recurrent_types
from freehold.models.config.latent_mixtures import SIGMOID, gguf_latent_mixture, hf_latent_mixture
from freehold.models.config.latents import LatentSizes, gguf_latent, hf_latent
from freehold.models.family import Family, LayerPart, TensorSpec
from freehold.models.parts.deltanet import MAX_KERNEL, DeltaSizes
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.expert_layouts import apart
from freehold.models.parts.kda import DeltaAttention
from freehold.models.parts.latent import LatentAttention
from freehold.models.parts.mlp import GatedMlp
from freehold.models.parts.moe import Moe, MoeNames

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
    """Read config.json of a KimiLinearForCausalLM."""
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
