"""Hunyuan-A13B and Hy3: attention with norms on queries and keys, experts and a shared one without a gate.

Hunyuan-A13B has a softmax router, and normalises queries and keys after they turn. Hy3 has a sigmoid router with a
correction and a factor, normalises before, and its first layer is dense.
Sources: the Hunyuan-A13B technical report (Tencent, 2025), Hy3's configuration and model code.
"""

from __future__ import annotations

from dataclasses import replace

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import (
    MAX_EXPERTS,
    MAX_SCALE,
    gguf_mixture,
    gguf_shared,
    hf_mixture,
    listed_sparse,
)
from freehold.run.models.config.rope import hf_ntk_alpha
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, mlp_or_experts

A13B_NAMES = MoeNames(router="mlp.gate.wg.weight", shared="mlp.shared_mlp")
HY3_ROUTING = Routing(scoring="sigmoid", correction=True, epsilon=1e-20)
HY3_NAMES = MoeNames(
    router="mlp.router.gate.weight",
    correction="mlp.expert_bias",
    gguf_correction="exp_probs_b",
    shared="mlp.shared_mlp",
)


# --- Hunyuan-A13B ------------------------------------------------------------------------------------


def a13b_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    return Sizes(**sizes, mixture=gguf_mixture(meta, sizes, shared=gguf_shared(meta)))


def a13b_from_hf(config: Fields) -> Sizes:
    """Read config.json of a HunYuanMoEV1ForCausalLM, whose published form lists some sizes by layer."""
    for key in ("attention_bias", "mlp_bias", "use_cla", "use_mla", "moe_layer_num_skipped"):
        config.refuse(key, "this variant of Hunyuan")
    for key in ("use_qk_norm", "use_mixed_mlp_moe", "norm_topk_prob"):
        if not config.flag(key, True):
            raise UnsupportedModel(f"{key} is false; only true is supported")
    if (shared := config.integer("num_shared_expert", 0, MAX_EXPERTS, 1)) != 1:
        raise UnsupportedModel(f"num_shared_expert is {shared}; only 1 is supported")
    wide = config.integer("intermediate_size", 1, MAX_WIDTH)
    if (each := config.integer("moe_intermediate_size", 1, MAX_WIDTH, wide)) != wide:
        raise UnsupportedModel(
            f"moe_intermediate_size is {each}; only intermediate_size, {wide}, is supported"
        )
    sizes = hf_decoder(hf_ntk_alpha(config), eps=1e-5)
    layers = len(sizes["heads"])
    mixture = hf_mixture(config, "intermediate_size", layers, chosen="moe_topk", shared=wide)
    return Sizes(**sizes, mixture=mixture)


def a13b_layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(cfg, i, qk_norm="after", qk_names=("query_layernorm", "key_layernorm"))
    return attention, Moe.of(cfg, A13B_NAMES)


# --- Hy3 ---------------------------------------------------------------------------------------------


def hy3_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `hy_v3.`; the first layer is dense, which the file does not state."""
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    layers = len(sizes["heads"])
    first = meta.integer("leading_dense_block_count", 0, layers, 1)
    sparse = tuple(i >= first for i in range(layers))
    mixture = gguf_mixture(meta, sizes, routing=HY3_ROUTING, shared=gguf_shared(meta), sparse=sparse)
    return Sizes(**sizes, mixture=mixture)


def hy3_from_hf(config: Fields) -> Sizes:
    for key in ("attention_bias", "mlp_bias"):
        config.refuse(key, "a bias on projections")
    sizes = hf_decoder(config, base=11_158_840.0, eps=1e-5)
    layers = len(sizes["heads"])
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        shared_experts=config.integer("num_shared_experts", 0, MAX_EXPERTS, 1),
        routing=replace(HY3_ROUTING, scale=config.number("router_scaling_factor", 1e-6, MAX_SCALE, 2.826)),
        sparse=listed_sparse(config, layers, default=1),
    )
    return Sizes(**sizes, mixture=mixture)


FAMILIES = (
    Family(
        gguf_architecture="hunyuan-moe",
        hf_classes=("HunYuanMoEV1ForCausalLM",),
        model_types=("hunyuan_v1_moe",),
        config_from_gguf=a13b_from_gguf,
        config_from_hf=a13b_from_hf,
        parts=(Attention, Moe),
        layer=a13b_layer,
        ends=DecoderEnds.of,
    ),
    Family(
        gguf_architecture="hy_v3",
        hf_classes=("HYV3ForCausalLM",),
        config_from_gguf=hy3_from_gguf,
        config_from_hf=hy3_from_hf,
        parts=(Attention, GatedMlp, Moe),
        layer=lambda cfg, i: (Attention.of(cfg, i, qk_norm="head"), mlp_or_experts(cfg, i, HY3_NAMES)),
        ends=DecoderEnds.of,
    ),
)
