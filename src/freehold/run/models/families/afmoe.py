"""Trinity (AFMoE): gated attention and experts, each between two norms; sigmoid routers, a few dense layers first.

Three sliding layers with a rope alternate with a full one without. A correction joins scores where experts are
compared; weights are divided by their sum and multiplied by a factor. Embeddings may grow by the root of the width,
which no GGUF states: there they do, as in all published models.
Source: transformers 5.24, models/afmoe; Arcee's page on Trinity of December 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from freehold.run.models.config.mixtures import (
    MAX_EXPERTS,
    MAX_SCALE,
    SIGMOID,
    gguf_shared_mixture,
    hf_mixture,
)
from freehold.run.models.config.sizes import Sizes, gguf_sizes, gguf_windows, hf_decoder, sliding_windows
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames

PATTERN = 4  # every fourth layer has full attention
NAMES = MoeNames(
    router="mlp.router.gate.weight",
    correction="mlp.expert_bias",
    norm="pre_mlp_layernorm",
    shared="mlp.shared_experts",
)
POST = "post_mlp_layernorm"


@dataclass(frozen=True, slots=True, kw_only=True)
class AfmoeSizes(Sizes):
    """Sizes of a Trinity, and the factor of its embeddings."""

    embeddings: float


def config_from_gguf(meta: Fields, vocab: int) -> AfmoeSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), lambda i: (i + 1) % PATTERN != 0)
    mixture = gguf_shared_mixture(meta, sizes, SIGMOID)
    return AfmoeSizes(**sizes, mixture=mixture, embeddings=sizes["hidden"] ** 0.5)


def config_from_hf(config: Fields) -> AfmoeSizes:
    """Read config.json of an AfmoeForCausalLM; published ones have keys of choices that their class does not make."""
    config.refuse("attention_bias", "a bias on attention")
    config.require("score_func", ("sigmoid",), "sigmoid")
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        config.integer(key, 1, 1, 1)
    sizes = hf_decoder(config, _windows, eps=1e-5, head_dim=128)
    layers = len(sizes["heads"])
    dense = config.integer("num_dense_layers", 0, layers, 1)
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        shared_experts=config.integer("num_shared_experts", 0, MAX_EXPERTS, 2),
        routing=replace(
            SIGMOID,
            renormalise=config.flag("route_norm", True),
            scale=config.number("route_scale", 1e-6, MAX_SCALE, 1.0),
        ),
        sparse=tuple(i >= dense for i in range(layers)),
    )
    grown = config.flag("mup_enabled", False)
    return AfmoeSizes(**sizes, mixture=mixture, embeddings=sizes["hidden"] ** 0.5 if grown else 1.0)


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 1024)
    every = config.integer("global_attn_every_n_layers", 1, MAX_LAYERS, PATTERN)
    return sliding_windows(config, layers, window, lambda i: (i + 1) % every != 0)


def layer(cfg: AfmoeSizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(
        cfg,
        i,
        rope=cfg.rope if cfg.windows[i] else None,
        qk_norm="head",
        post_norm="post_attention_layernorm",
        gate="gate_proj",
    )
    assert cfg.mixture is not None, "both readers give one"
    if cfg.mixture.sparse[i]:
        return attention, Moe.of(cfg, NAMES, post_norm=POST)
    return attention, GatedMlp.of(cfg, i, norm_name=NAMES.norm, post_norm=POST)


FAMILY = Family(
    gguf_architecture="afmoe",
    hf_classes=("AfmoeForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    ends=lambda cfg: DecoderEnds.of(cfg, scale=cfg.embeddings),
)
