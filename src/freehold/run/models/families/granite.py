"""Granite 3 and 4.1, dense: a Llama block whose embeddings, scores, residuals and logits have factors of their own.

GGUF files hold q and k rows permuted so that adjacent elements turn together; safetensors hold halves.
Source: IBM's Granite 3 report of October 2024; the factors are those of arXiv 2203.03466 (muP).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

MOST = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteSizes(Sizes):
    """Sizes of a Granite, and its four factors."""

    embedding: float
    residual: float
    scale: float  # of query times key; 0: head_dim ** -0.5
    logits: float  # divides them


def gguf_factors(meta: Fields) -> dict[str, Any]:
    """Read the four factors of a GGUF."""
    return {
        "embedding": meta.number("embedding_scale", 1 / MOST, MOST, 1.0),
        "residual": meta.number("residual_scale", 1 / MOST, MOST, 1.0),
        "scale": meta.number("attention.scale", 0.0, MOST, 0.0),
        "logits": meta.number("logit_scale", 1 / MOST, MOST, 1.0),
    }


def hf_factors(config: Fields) -> dict[str, Any]:
    """Read the four factors of a config.json."""
    return {
        "embedding": config.number("embedding_multiplier", 1 / MOST, MOST, 1.0),
        "residual": config.number("residual_multiplier", 1 / MOST, MOST, 1.0),
        "scale": config.number("attention_multiplier", 1 / MOST, MOST, 1.0),
        "logits": config.number("logits_scaling", 1 / MOST, MOST, 1.0),
    }


def config_from_hf(config: Fields) -> GraniteSizes:
    config.refuse("mlp_bias", "a bias on the MLP")
    return GraniteSizes(**hf_decoder(config), **hf_factors(config))


def layer(cfg: GraniteSizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(cfg, i, bias="any", gguf_pairs=True, scale=cfg.scale, residual=cfg.residual)
    return attention, GatedMlp.of(cfg, i, residual=cfg.residual)


def ends(cfg: GraniteSizes) -> DecoderEnds:
    """Scale embeddings, and divide logits."""
    return DecoderEnds.of(cfg, scale=cfg.embedding, logit_scale=1 / cfg.logits)


FAMILY = Family(
    gguf_architecture="granite",
    hf_classes=("GraniteForCausalLM",),
    config_from_gguf=lambda meta, vocab: GraniteSizes(
        **gguf_sizes(meta, vocab, adjacent=True), **gguf_factors(meta)
    ),
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=ends,
)
