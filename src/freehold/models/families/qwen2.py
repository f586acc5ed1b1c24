"""Qwen1.5, 2 and 2.5 (Coder, Math), QwQ, R1-distill-Qwen.

A Llama block with biases on q, k and v; rotary pairs are halves in both file formats.
Source: arXiv 2407.10671, 2412.15115.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder, qwen_windows
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `qwen2.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a Qwen2ForCausalLM."""
    return Sizes(**hf_decoder(config, qwen_windows))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i, bias="qkv"), GatedMlp.of(cfg, i)


FAMILY = Family(
    gguf_architecture="qwen2",
    hf_classes=("Qwen2ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
