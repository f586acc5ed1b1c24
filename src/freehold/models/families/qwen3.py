"""Qwen3, dense.

A Llama block whose query and key heads pass an RMS norm of their own before they turn; heads are as wide as
the file says (128), whatever the hidden width. No biases; rotary pairs are halves in both file formats.
Source: arXiv 2505.09388.
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
    """Read the keys under `qwen3.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a Qwen3ForCausalLM."""
    return Sizes(**hf_decoder(config, qwen_windows, head_dim=128))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i, qk_norm="head"), GatedMlp.of(cfg, i)


FAMILY = Family(
    gguf_architecture="qwen3",
    hf_classes=("Qwen3ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
