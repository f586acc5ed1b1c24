"""GLM-4 of 2024 and 0414: norms before and after each half, and a rope on half of a head, in adjacent pairs.

Gate and up are one matrix in both file formats.
Source: arXiv 2406.12793.
"""

from __future__ import annotations

from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.family import Family, LayerPart
from freehold.models.parts import Attention, DecoderEnds, GatedMlp

EPS = 0.00000015625


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(cfg, i, bias="any", post_norm="post_self_attn_layernorm")
    return attention, GatedMlp.of(cfg, i, fused=True, post_norm="post_mlp_layernorm")


FAMILY = Family(
    gguf_architecture="glm4",
    hf_classes=("Glm4ForCausalLM",),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=True)),
    config_from_hf=lambda config: Sizes(
        **hf_decoder(config, partial=0.5, adjacent=True, head_dim=128, eps=EPS)
    ),
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
