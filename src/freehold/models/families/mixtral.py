"""Mixtral 8x7B and 8x22B: a Mistral block whose MLP is a mixture of eight experts, two of them chosen.

GGUF files call it `llama`, and state its experts; those of early 2024 hold each expert apart.
Source: arXiv 2401.04088.
Path: bind.read_source -> config -> layers
"""

from __future__ import annotations

from freehold.formats.fields import MAX_CONTEXT, Fields
from freehold.models.family import Family, Layer
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.moe import MIXTRAL, Moe
from freehold.models.sizes import (
    Sizes,
    gguf_mixture,
    gguf_sizes,
    hf_mixture,
    hf_rope,
    hf_sizes,
    sliding_windows,
)


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `llama.`; an expert is as wide as they say an MLP is."""
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    mixture = gguf_mixture(meta, sizes, intermediate=sizes["intermediate"][0])
    return Sizes(**sizes, mixture=mixture)


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a MixtralForCausalLM."""
    config.require("hidden_act", ("silu",), "silu")
    sizes = hf_sizes(config)
    layers = len(sizes["heads"])
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0)
    return Sizes(
        **sizes | hf_rope(config, sizes),
        windows=sliding_windows(config, layers, window, lambda i: True),
        mixture=hf_mixture(config, "intermediate_size", layers),
    )


def layers(cfg: Sizes) -> tuple[Layer, ...]:
    """Give each layer attention and experts."""
    return tuple(
        Layer((Attention.of(cfg, i, gguf_pairs=True), Moe.of(cfg, MIXTRAL))) for i in range(cfg.layers)
    )


FAMILY = Family(
    gguf_architecture="llama",
    hf_classes=("MixtralForCausalLM",),
    model_types=("mixtral",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layers=layers,
    ends=DecoderEnds.of,
)
