"""Gemma 2: norms before and after each half, soft caps on scores and logits, every second layer with full attention.

GGUF files store the norm factors; safetensors store them minus 1, so 1 is added.
Source: arXiv 2408.00118.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.rope import rope_from_hf
from freehold.run.models.config.sizes import Sizes, gguf_sizes, gguf_windows, hf_sizes, sliding_windows
from freehold.run.models.families.gemma import NORM, check_gemma
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

WINDOW, ATTENTION_CAP, LOGIT_CAP = 4096, 50.0, 30.0
# Only the 27b scales queries by hidden/heads instead of the head's width; GGUF has no key for it.
LAYERS_27B = 46


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaSizes2(Sizes):
    """Sizes of Gemma 2."""

    scale: float  # of query times key
    attn_softcap: float
    logit_softcap: float


def config_from_gguf(meta: Fields, vocab: int) -> GemmaSizes2:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    layers = len(sizes["heads"])
    sizes["windows"] = gguf_windows(meta, layers, _slides)
    width = sizes["hidden"] / sizes["heads"][0] if layers == LAYERS_27B else sizes["head_dim"]
    return GemmaSizes2(
        **sizes,
        scale=meta.number("attention.scale", 1e-6, 1e3, width**-0.5),
        attn_softcap=meta.number("attn_logit_softcapping", 0.0, 1e6, ATTENTION_CAP),
        logit_softcap=meta.number("final_logit_softcapping", 0.0, 1e6, LOGIT_CAP),
    )


def config_from_hf(config: Fields) -> GemmaSizes2:
    check_gemma(config)
    sizes = hf_sizes(config, tied=True, head_dim=256)
    window = config.integer("sliding_window", 0, MAX_CONTEXT, WINDOW)
    return GemmaSizes2(
        **sizes,
        rope=rope_from_hf(config, head_dim=sizes["head_dim"], context=sizes["context"]),
        windows=sliding_windows(config, len(sizes["heads"]), window, _slides),
        scale=config.number("query_pre_attn_scalar", 1e-3, 1e6, 256.0) ** -0.5,
        attn_softcap=_cap(config, "attn_logit_softcapping", ATTENTION_CAP),
        logit_softcap=_cap(config, "final_logit_softcapping", LOGIT_CAP),
    )


def _cap(config: Fields, key: str, default: float) -> float:
    """Read a cap; a null one is none, a missing one the class's."""
    stated_null = key in config.values and config.get(key) is None
    return 0.0 if stated_null else config.number(key, 0.0, 1e6, default)


def _slides(layer: int) -> bool:
    return layer % 2 == 0


def layer(cfg: GemmaSizes2, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(
        cfg, i, scale=cfg.scale, softcap=cfg.attn_softcap, norm=NORM, post_norm="post_attention_layernorm"
    )
    before, after = "pre_feedforward_layernorm", "post_feedforward_layernorm"
    return attention, GatedMlp.of(cfg, i, act="gelu", norm=NORM, norm_name=before, post_norm=after)


def ends(cfg: GemmaSizes2) -> DecoderEnds:
    return DecoderEnds.of(cfg, scale=math.sqrt(cfg.hidden), softcap=cfg.logit_softcap, norm=NORM)


FAMILY = Family(
    gguf_architecture="gemma2",
    hf_classes=("Gemma2ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=ends,
)
