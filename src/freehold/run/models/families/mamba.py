"""Mamba and Falcon Mamba: layers of one Mamba-1 mixer each, without attention, MLP or positions.

Falcon Mamba normalises what steps, B and C are made of, without weights. Nothing bounds the context. A GGUF states
1,048,576 for all; a config.json that states none gets the same.
Sources: arXiv 2312.00752, 2410.05355 (Falcon Mamba).
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, check_width
from freehold.run.models.families.mamba2 import CONTEXT, NAMES
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import DecoderEnds
from freehold.run.models.parts.mamba import InnerNorm, Mamba1, SelectiveSizes, gguf_selective, hf_selective

INNER_EPS = 1e-6  # of Falcon Mamba's norms inside; a GGUF does not state it


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveConfig:
    """Sizes of a model of Mamba-1 mixers."""

    vocab: int
    hidden: int
    layers: int
    mamba: SelectiveSizes
    eps: float
    context: int
    tied: bool
    conv_bias: bool
    inner_norm: InnerNorm
    inner_eps: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_width("hidden", self.hidden)


def config_from_gguf(meta: Fields, vocab: int) -> SelectiveConfig:
    return SelectiveConfig(
        vocab=vocab,
        hidden=meta.integer("embedding_length", 1, MAX_WIDTH),
        layers=meta.integer("block_count", 1, MAX_LAYERS),
        mamba=gguf_selective(meta),
        eps=meta.number("attention.layer_norm_rms_epsilon", MIN_EPS, MAX_EPS),
        context=meta.integer("context_length", 1, MAX_CONTEXT, CONTEXT),
        tied=True,
        conv_bias=True,
        inner_norm="bare" if meta.flag("ssm.dt_b_c_rms", False) else "none",
        inner_eps=INNER_EPS,
    )


def config_from_hf(config: Fields) -> SelectiveConfig:
    config.require("hidden_act", ("silu",), "silu")
    config.refuse("use_bias", "a bias on projections")
    hidden = config.integer("hidden_size", 1, MAX_WIDTH, 768)
    keys = {"states": "state_size", "rank": "time_step_rank", "kernel": "conv_kernel"}
    return SelectiveConfig(
        vocab=config.integer("vocab_size", 1, MAX_VOCAB, 50280),
        hidden=hidden,
        layers=config.integer("num_hidden_layers", 1, MAX_LAYERS, 32),
        mamba=hf_selective(config, hidden, **keys),
        eps=config.number("layer_norm_epsilon", MIN_EPS, MAX_EPS, 1e-5),
        context=config.integer("max_position_embeddings", 1, MAX_CONTEXT, CONTEXT),
        tied=config.flag("tie_word_embeddings", True),
        conv_bias=config.flag("use_conv_bias", True),
        inner_norm="bare" if config.get("model_type") == "falcon_mamba" else "none",
        inner_eps=config.number("mixer_rms_eps", MIN_EPS, MAX_EPS, INNER_EPS),
    )


def layer(cfg: SelectiveConfig, i: int) -> tuple[LayerPart, ...]:
    norms = {"inner_norm": cfg.inner_norm, "inner_eps": cfg.inner_eps}
    return (Mamba1(hidden=cfg.hidden, sizes=cfg.mamba, eps=cfg.eps, conv_bias=cfg.conv_bias, **norms),)


FAMILY = Family(
    gguf_architecture="mamba",
    hf_classes=("MambaForCausalLM", "FalconMambaForCausalLM"),
    model_types=("falcon_mamba",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Mamba1,),
    layer=layer,
    ends=lambda cfg: DecoderEnds(vocab=cfg.vocab, hidden=cfg.hidden, eps=cfg.eps, tied=cfg.tied),
    hf_layers="backbone.layers",
    names=NAMES,
)
