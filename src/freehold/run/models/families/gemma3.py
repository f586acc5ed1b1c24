"""Gemma 3, text: 270m to 27b.

Norms before and after each half, a norm on every query and key head, GeLU (tanh) gates, embeddings times
sqrt(hidden). Five layers with a sliding window and a rope base of 10,000 alternate with one of full attention,
with base 1,000,000.
GGUF files store the norm factors; safetensors store them minus 1, so 1 is added.
Source: arXiv 2503.19786.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from freehold.run.models.config.rope import RopeSpec, hf_layer_ropes
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_sizes, sliding_windows
from freehold.run.models.families.gemma import NORM, check_gemma
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

LOCAL_BASE = 10_000.0
GLOBAL_BASE = 1_000_000.0
PATTERN = 6  # every sixth layer has full attention
# Only the 27b scales queries by hidden/heads instead of the head's width; GGUF has no key for it.
LAYERS_27B = 62


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaSizes(Sizes):
    """Sizes of Gemma 3; `rope` is that of the full-attention layers."""

    rope_local: RopeSpec
    scale: float  # of query times key
    attn_softcap: float
    logit_softcap: float


def config_from_gguf(meta: Fields, vocab: int) -> GemmaSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False, base=GLOBAL_BASE)
    layers, head_dim = len(sizes["heads"]), sizes["head_dim"]
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, LOCAL_BASE)
    window = meta.integer("attention.sliding_window", 1, MAX_CONTEXT)
    pattern = meta.integer("attention.sliding_window_pattern", 1, MAX_LAYERS, PATTERN)
    sizes["windows"] = tuple(0 if (i + 1) % pattern == 0 else window for i in range(layers))
    width = sizes["hidden"] / sizes["heads"][0] if layers == LAYERS_27B else head_dim
    return GemmaSizes(
        **sizes,
        rope_local=RopeSpec(base=base, width=head_dim, adjacent=False, divisible=False),
        scale=meta.number("attention.scale", 1e-6, 1e3, width**-0.5),
        attn_softcap=meta.number("attn_logit_softcapping", 0.0, 1e6, 0.0),
        logit_softcap=meta.number("final_logit_softcapping", 0.0, 1e6, 0.0),
    )


def config_from_hf(config: Fields) -> GemmaSizes:
    check_gemma(config)
    sizes = hf_sizes(
        config,
        tied=True,
        vocab_size=262_208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131_072,
    )
    bases = {"base": GLOBAL_BASE, "local_base": LOCAL_BASE}
    rope, rope_local = hf_layer_ropes(config, head_dim=sizes["head_dim"], context=sizes["context"], **bases)
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 4096)
    pattern = config.integer("sliding_window_pattern", 1, MAX_LAYERS, PATTERN)
    return GemmaSizes(
        **sizes,
        rope=rope,
        rope_local=rope_local,
        windows=sliding_windows(config, len(sizes["heads"]), window, lambda i: (i + 1) % pattern != 0),
        scale=config.number("query_pre_attn_scalar", 1e-3, 1e6, 256.0) ** -0.5,
        attn_softcap=config.number("attn_logit_softcapping", 0.0, 1e6, 0.0),
        logit_softcap=config.number("final_logit_softcapping", 0.0, 1e6, 0.0),
    )


def layer(cfg: GemmaSizes, i: int) -> tuple[LayerPart, ...]:
    """Return attention and MLP, each between two norms; sliding-window layers use `rope_local`."""
    attention = Attention.of(
        cfg,
        i,
        rope=cfg.rope_local if cfg.windows[i] else cfg.rope,
        scale=cfg.scale,
        softcap=cfg.attn_softcap,
        qk_norm="head",
        norm=NORM,
        post_norm="post_attention_layernorm",
        both=True,
    )
    before, after = "pre_feedforward_layernorm", "post_feedforward_layernorm"
    return attention, GatedMlp.of(cfg, i, act="gelu", norm=NORM, norm_name=before, post_norm=after)


def ends(cfg: GemmaSizes) -> DecoderEnds:
    scale = math.sqrt(cfg.hidden)
    return DecoderEnds.of(cfg, scale=scale, softcap=cfg.logit_softcap, norm=NORM)


FAMILY = Family(
    gguf_architecture="gemma3",
    hf_classes=("Gemma3ForCausalLM",),
    wrappers=("Gemma3ForConditionalGeneration",),
    model_types=("gemma3_text",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=ends,
    both=lambda cfg: True,
    towers=("gemma3",),
)
