"""OLMoE: 64 experts, eight of them chosen, and an RMS norm over the whole width of queries and of keys.

The chosen experts' weights are not divided by their sum. Rotary pairs are halves in both file formats.
Source: arXiv 2409.02060.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds
from freehold.run.models.parts.moe import Moe

CLIPS = "clipped queries, keys and values"


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `olmoe.`; an expert is as wide as they say an MLP is."""
    meta.refuse("attention.clamp_kqv", CLIPS)
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    intermediate = sizes["intermediate"][0]
    routing = Routing(renormalise=False)
    return Sizes(**sizes, mixture=gguf_mixture(meta, sizes, intermediate=intermediate, routing=routing))


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("clip_qkv", CLIPS)
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_decoder(config, eps=1e-5)
    layers = len(sizes["heads"])
    routing = Routing(renormalise=config.flag("norm_topk_prob", False))
    mixture = hf_mixture(config, "intermediate_size", layers, routing=routing)
    return Sizes(**sizes, mixture=mixture)


FAMILY = Family(
    gguf_architecture="olmoe",
    hf_classes=("OlmoeForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layer=lambda cfg, i: (Attention.of(cfg, i, qk_norm="width"), Moe.of(cfg)),
    ends=DecoderEnds.of,
)
