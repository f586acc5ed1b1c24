"""Nemotron-H, Nemotron Nano 2 and Nemotron 3: layers of one mixer each, by a pattern.

    x += mixer(norm(x)): M Mamba-2, * attention without positions, - an MLP and E experts, both of squared ReLU, no gate

Experts are chosen by sigmoids with a correction, weighed without it, and joined by a shared one; in Super and Ultra
they read and give a narrower token (latent), which router and shared expert do not. Blocks with experts of their own
sizes (Puzzle) are refused: a size that differs from layer to layer. A GGUF tells the pattern by numbers for each layer.
Sources: arXiv 2504.03624, 2508.14444; transformers' NemotronHForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import (
    MAX_EXPERTS,
    chosen_of,
    gguf_routing,
    hf_groups,
    hf_mixture,
    mixture,
)
from freehold.run.models.config.sizes import (
    MAX_EPS,
    MIN_EPS,
    Mixture,
    Routing,
    Sizes,
    check_heads,
    check_width,
    checked_sizes,
    gguf_layers,
)
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, PlainMlp
from freehold.run.models.parts.mamba import Mamba2, MambaKeys, MambaSizes, gguf_mamba, hf_mamba
from freehold.run.models.parts.moe import Moe, MoeNames

KINDS = {
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "moe": "E",
    "mlp": "-",
}
NAMES = {
    "model.embed_tokens": "backbone.embeddings",
    "model.norm": "backbone.norm_f",
    "input_layernorm": "norm",
    "post_attention_layernorm": "norm",
    "ffn_norm": "attn_norm",
    "self_attn": "mixer",
    "mamba": "mixer",
    "mlp": "mixer",
}
MAMBA = MambaKeys("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel")
EXPERTS = MoeNames(shared="mlp.shared_experts")
ROUTING = Routing(scoring="sigmoid", correction=True, group_score="top2", epsilon=1e-20)


@dataclass(frozen=True, slots=True, kw_only=True)
class NemotronSizes(Sizes):
    """Sizes of a Nemotron-H: a layer has kv heads, or an MLP's width, or experts; one without any is of Mamba-2."""

    mamba: MambaSizes
    latent: int  # width that experts read and give; 0: the hidden one
    conv_bias: bool


class LoneMlp(PlainMlp):
    """An MLP where other layers mix tokens."""

    kinds = frozenset({"plain"})


class LoneMoe(Moe):
    """Experts where other layers mix tokens."""

    kinds = frozenset({"plain"})


def config_from_gguf(meta: Fields, vocab: int) -> NemotronSizes:
    """Read the keys under `nemotron_h.` or `nemotron_h_moe.`, whose lists count layers left out too."""
    layers, listed = gguf_layers(meta), meta.integer("block_count", 1, MAX_LAYERS)
    kv_heads = meta.each("attention.head_count_kv", listed, 0, MAX_HEADS)[:layers]
    wide = meta.each("feed_forward_length", listed, 0, MAX_WIDTH)[:layers]
    if both := [i for i in range(layers) if kv_heads[i] and wide[i]]:
        raise UnsupportedModel(f"layer {both[0]} has heads and an MLP; only one of both is supported")
    experts = meta.integer("expert_count", 0, MAX_EXPERTS, 0)
    rms = "attention.layer_norm_rms_epsilon"
    heads = (meta.integer("attention.head_count", 1, MAX_HEADS),) * layers
    check_heads(meta.name("attention.head_count_kv"), heads, kv_heads)
    return _sizes(
        vocab=vocab,
        hidden=meta.integer("embedding_length", 1, MAX_WIDTH),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=meta.integer("attention.key_length", 1, MAX_WIDTH),
        intermediate=(0,) * layers if experts else wide,
        mixture=_gguf_mixture(meta, tuple(n > 0 for n in wide)) if experts else None,
        mamba=gguf_mamba(meta),
        latent=meta.integer("moe_latent_size", 1, MAX_WIDTH, 0),
        eps=meta.number(
            rms if meta.get(rms) is not None else "attention.layer_norm_epsilon", MIN_EPS, MAX_EPS
        ),
        context=meta.integer("context_length", 1, MAX_CONTEXT),
        tied=True,
        conv_bias=True,
    )


def _gguf_mixture(meta: Fields, sparse: tuple[bool, ...]) -> Mixture:
    experts = meta.integer("expert_count", 1, MAX_EXPERTS)
    return mixture(
        experts=experts,
        chosen=chosen_of(meta, "expert_used_count", experts),
        hidden=meta.integer("embedding_length", 1, MAX_WIDTH),
        intermediate=meta.integer("expert_feed_forward_length", 1, MAX_WIDTH),
        layers=len(sparse),
        shared=meta.integer("expert_shared_feed_forward_length", 1, MAX_WIDTH),
        routing=gguf_routing(meta, ROUTING),
        sparse=sparse,
    )


def config_from_hf(config: Fields) -> NemotronSizes:
    """Read config.json of a NemotronHForCausalLM, whose pattern is a text or a list of names."""
    config.require("mlp_hidden_act", ("relu2",), "relu2")
    config.require("mamba_hidden_act", ("silu",), "silu")
    for key in ("use_bias", "mlp_bias", "attention_bias", "mamba_proj_bias"):
        config.refuse(key, "a bias on projections")
    config.refuse("sliding_window", "a sliding window")
    pattern = _hf_pattern(config)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS, 32)
    kv_heads = config.integer("num_key_value_heads", 1, MAX_HEADS, heads)
    check_heads(config.name("num_key_value_heads"), (heads,), (kv_heads,))
    wide = config.integer("intermediate_size", 1, MAX_WIDTH, 21504) if "-" in pattern else 0
    experts = None
    if "E" in pattern:
        experts = hf_mixture(
            config,
            "moe_intermediate_size",
            len(pattern),
            shared=config.integer("moe_shared_expert_intermediate_size", 1, MAX_WIDTH),
            routing=hf_groups(config, ROUTING),
            sparse=tuple(kind == "E" for kind in pattern),
        )
    head_key = "head_dim" if config.get("attention_head_dim") is None else "attention_head_dim"
    return _sizes(
        vocab=config.integer("vocab_size", 1, MAX_VOCAB, 131072),
        hidden=config.integer("hidden_size", 1, MAX_WIDTH, 4096),
        heads=(heads,) * len(pattern),
        kv_heads=tuple(kv_heads if kind == "*" else 0 for kind in pattern),
        head_dim=config.integer(head_key, 1, MAX_WIDTH, 128),
        intermediate=tuple(wide if kind == "-" else 0 for kind in pattern),
        mixture=experts,
        mamba=hf_mamba(config, MAMBA),
        latent=config.integer("moe_latent_size", 1, MAX_WIDTH, 0) if experts else 0,
        eps=config.number("layer_norm_epsilon", MIN_EPS, MAX_EPS, 1e-5),
        context=config.integer("max_position_embeddings", 1, MAX_CONTEXT, 4096),
        tied=config.flag("tie_word_embeddings", False),
        conv_bias=config.flag("use_conv_bias", True),
    )


def _hf_pattern(config: Fields) -> str:
    text = config.get("hybrid_override_pattern")
    key = "layers_block_type" if text is None else "hybrid_override_pattern"
    kinds = list(text) if isinstance(text, str) else config.get("layers_block_type")
    if not isinstance(kinds, list) or not 1 <= len(kinds) <= MAX_LAYERS:
        raise BadModelFile(f"{config.name(key)} is {str(kinds)[:60]}; expected 1 to {MAX_LAYERS} layers")
    letters = [kind if kind in KINDS.values() else KINDS.get(str(kind), "") for kind in kinds]
    if "" in letters:
        strange = str(kinds[letters.index("")])[:60]
        raise UnsupportedModel(f"{config.name(key)} names {strange!r}; supported: M, *, E, -")
    if config.integer("num_hidden_layers", 1, MAX_LAYERS, len(kinds)) != len(kinds):
        raise BadModelFile(f"{config.name(key)} has {len(kinds)} layers; num_hidden_layers says otherwise")
    return "".join(letters)


def _sizes(**sizes: Any) -> NemotronSizes:
    check_width("latent", sizes["latent"])
    return NemotronSizes(**checked_sizes(**sizes), windows=(0,) * len(sizes["heads"]))


def layer(cfg: NemotronSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its one part."""
    if cfg.kv_heads[i]:
        return (Attention.of(cfg, i),)
    if cfg.intermediate[i]:
        return (LoneMlp.of(cfg, i, act="relu2"),)
    if cfg.mixture and cfg.mixture.sparse[i]:
        return (LoneMoe.of(cfg, EXPERTS, act="relu2", latent=cfg.latent),)
    return (Mamba2(hidden=cfg.hidden, sizes=cfg.mamba, eps=cfg.eps, conv_bias=cfg.conv_bias),)


MIXED = Family(
    gguf_architecture="nemotron_h_moe",
    hf_classes=("NemotronHForCausalLM",),
    model_types=("nemotron_h",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Mamba2, Attention, LoneMlp, LoneMoe),
    layer=layer,
    ends=DecoderEnds.of,
    names=NAMES,
    hf_layers="backbone.layers",
    left_out=(("mtp.", "the layers that predict further tokens are left out"),),
)
DENSE = replace(
    MIXED, gguf_architecture="nemotron_h", hf_classes=(), model_types=(), parts=(Mamba2, Attention, LoneMlp)
)
FAMILIES = (MIXED, DENSE)
