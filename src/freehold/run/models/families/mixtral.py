"""Mixtral 8x7B and 8x22B: a Mistral block whose MLP is a mixture of eight experts, two of them chosen.

GGUF files call it `llama`, and state its experts; those of early 2024 hold each expert apart.
Source: arXiv 2401.04088.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.sizes import Sizes, every_window, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds
from freehold.run.models.parts.moe import MIXTRAL, Moe


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `llama.`; an expert is as wide as they say an MLP is."""
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    mixture = gguf_mixture(meta, sizes, intermediate=sizes["intermediate"][0])
    return Sizes(**sizes, mixture=mixture)


def config_from_hf(config: Fields) -> Sizes:
    sizes = hf_decoder(config, every_window, eps=1e-5)
    mixture = hf_mixture(config, "intermediate_size", len(sizes["heads"]))
    return Sizes(**sizes, mixture=mixture)


FAMILY = Family(
    gguf_architecture="llama",
    hf_classes=("MixtralForCausalLM",),
    model_types=("mixtral",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layer=lambda cfg, i: (Attention.of(cfg, i, gguf_pairs=True), Moe.of(cfg, MIXTRAL)),
    ends=DecoderEnds.of,
)
