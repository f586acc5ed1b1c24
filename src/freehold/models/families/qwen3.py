"""Qwen3, dense.

A Llama block whose query and key heads pass an RMS norm of their own before they turn; heads are as wide as
the file says (128), whatever the hidden width. No biases; rotary pairs are halves in both file formats.
Source: arXiv 2505.09388.
Path: bind.read_source -> config -> layers
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.family import Family, Layer
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp
from freehold.models.sizes import Sizes, gguf_sizes, hf_rope, hf_sizes, qwen_windows


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `qwen3.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a Qwen3ForCausalLM."""
    config.require("hidden_act", ("silu",), "silu")
    sizes = hf_sizes(config, head_dim=128)
    return Sizes(**sizes | hf_rope(config, sizes), windows=qwen_windows(config, len(sizes["heads"])))


def layers(cfg: Sizes) -> tuple[Layer, ...]:
    """Give each layer attention and an MLP."""
    return tuple(
        Layer((Attention.of(cfg, i, qk_norm="head"), GatedMlp.of(cfg, i))) for i in range(cfg.layers)
    )


FAMILY = Family(
    gguf_architecture="qwen3",
    hf_classes=("Qwen3ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layers=layers,
    ends=DecoderEnds.of,
)
