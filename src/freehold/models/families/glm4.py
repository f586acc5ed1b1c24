"""GLM-4 of 2024 and 0414: norms before and after each half, and a rope on half of a head, in adjacent pairs.

Gate and up are one matrix in both file formats.
Source: arXiv 2406.12793.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp

EPS = 0.00000015625


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `glm4.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=True))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a Glm4ForCausalLM."""
    return Sizes(**hf_decoder(config, partial=0.5, adjacent=True, head_dim=128, eps=EPS))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP, each between two norms."""
    attention = Attention.of(cfg, i, bias="any", post_norm="post_self_attn_layernorm")
    return attention, GatedMlp.of(cfg, i, fused=True, post_norm="post_mlp_layernorm")


FAMILY = Family(
    gguf_architecture="glm4",
    hf_classes=("Glm4ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
