"""Seed-OSS: a Llama block with biases on queries, keys and values; heads are as wide as the file says.

Rotary pairs are halves in both file formats. A GGUF calls the MLP's norm `post_attention_norm`.
Source: ByteDance's Seed-OSS files of August 2025.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("mlp_bias", "a bias on the MLP")
    return Sizes(**hf_decoder(config, head_dim=128))


FAMILY = Family(
    gguf_architecture="seed_oss",
    hf_classes=("SeedOssForCausalLM",),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=False)),
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (
        Attention.of(cfg, i, bias="any"),
        GatedMlp.of(cfg, i, gguf_norm="post_attention_norm"),
    ),
    ends=DecoderEnds.of,
)
