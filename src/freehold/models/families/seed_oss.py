"""Seed-OSS: a Llama block with biases on queries, keys and values; heads are as wide as the file says.

Rotary pairs are halves in both file formats. A GGUF calls the MLP's norm `post_attention_norm`.
Source: ByteDance's Seed-OSS files of August 2025.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `seed_oss.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a SeedOssForCausalLM."""
    config.refuse("mlp_bias", "a bias on the MLP")
    return Sizes(**hf_decoder(config, head_dim=128))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i, bias="any"), GatedMlp.of(cfg, i, gguf_norm="post_attention_norm")


FAMILY = Family(
    gguf_architecture="seed_oss",
    hf_classes=("SeedOssForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
