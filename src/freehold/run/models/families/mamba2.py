"""Mamba-2 alone: layers of one mixer each, without attention, MLP or positions (Codestral Mamba).

Nothing bounds the context. A GGUF states 1,048,576 for all; a config.json that states none gets the same.
`norm_before_gate` of published configs is not read by transformers either: the norm always follows the gate.
Sources: arXiv 2405.21060; transformers' Mamba2ForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, check_width
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import DecoderEnds
from freehold.run.models.parts.mamba import Mamba2, MambaKeys, MambaSizes, gguf_mamba, hf_mamba

CONTEXT = 1 << 20
MAMBA = MambaKeys("num_heads", "head_dim", "state_size", "n_groups", "conv_kernel")
NAMES = {
    "model.embed_tokens": "backbone.embeddings",
    "model.norm": "backbone.norm_f",
    "input_layernorm": "norm",
    "mamba": "mixer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaConfig:
    """Sizes of a model of Mamba-2 mixers."""

    vocab: int
    hidden: int
    layers: int
    mamba: MambaSizes
    eps: float
    context: int
    tied: bool
    conv_bias: bool
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_width("hidden", self.hidden)


def config_from_gguf(meta: Fields, vocab: int) -> MambaConfig:
    return MambaConfig(
        vocab=vocab,
        hidden=meta.integer("embedding_length", 1, MAX_WIDTH),
        layers=meta.integer("block_count", 1, MAX_LAYERS),
        mamba=gguf_mamba(meta),
        eps=meta.number("attention.layer_norm_rms_epsilon", MIN_EPS, MAX_EPS),
        context=meta.integer("context_length", 1, MAX_CONTEXT, CONTEXT),
        tied=True,
        conv_bias=True,
    )


def config_from_hf(config: Fields) -> MambaConfig:
    config.require("hidden_act", ("silu",), "silu")
    config.refuse("use_bias", "a bias on projections")
    if not config.flag("rms_norm", True):
        raise UnsupportedModel(
            f"{config.name('rms_norm')} is false: a mixer without its norm is not supported"
        )
    hidden = config.integer("hidden_size", 1, MAX_WIDTH)
    return MambaConfig(
        vocab=config.integer("vocab_size", 1, MAX_VOCAB),
        hidden=hidden,
        layers=config.integer("num_hidden_layers", 1, MAX_LAYERS),
        mamba=hf_mamba(config, MAMBA, config.integer("expand", 1, MAX_WIDTH, 2) * hidden),
        eps=config.number("layer_norm_epsilon", MIN_EPS, MAX_EPS, 1e-5),
        context=config.integer("max_position_embeddings", 1, MAX_CONTEXT, CONTEXT),
        tied=config.flag("tie_word_embeddings", False),
        conv_bias=config.flag("use_conv_bias", True),
    )


def layer(cfg: MambaConfig, i: int) -> tuple[LayerPart, ...]:
    return (Mamba2(hidden=cfg.hidden, sizes=cfg.mamba, eps=cfg.eps, conv_bias=cfg.conv_bias),)


def ends(cfg: MambaConfig) -> DecoderEnds:
    return DecoderEnds(vocab=cfg.vocab, hidden=cfg.hidden, eps=cfg.eps, tied=cfg.tied)


FAMILY = Family(
    gguf_architecture="mamba2",
    hf_classes=("Mamba2ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Mamba2,),
    layer=layer,
    ends=ends,
    hf_layers="backbone.layers",
    names=NAMES,
)
