"""OLMoE: 64 experts, eight of them chosen, and an RMS norm over the whole width of queries and of keys.

The chosen experts' weights are not divided by their sum. Rotary pairs are halves in both file formats.
Source: arXiv 2409.02060.
Path: bind.read_source -> config -> layers
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.family import Family, Layer
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.moe import Moe
from freehold.models.sizes import Sizes, gguf_mixture, gguf_sizes, hf_mixture, hf_rope, hf_sizes

CLIPS = "clipped queries, keys and values"


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `olmoe.`; an expert is as wide as they say an MLP is."""
    meta.refuse("attention.clamp_kqv", CLIPS)
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    intermediate = sizes["intermediate"][0]
    return Sizes(**sizes, mixture=gguf_mixture(meta, sizes, intermediate=intermediate, renormalise=False))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of an OlmoeForCausalLM."""
    config.require("hidden_act", ("silu",), "silu")
    config.refuse("clip_qkv", CLIPS)
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_sizes(config, eps=1e-5)
    layers = len(sizes["heads"])
    renormalise = config.flag("norm_topk_prob", False)
    mixture = hf_mixture(config, "intermediate_size", layers, renormalise=renormalise)
    return Sizes(**sizes | hf_rope(config, sizes), windows=(0,) * layers, mixture=mixture)


def layers(cfg: Sizes) -> tuple[Layer, ...]:
    """Give each layer attention and experts."""
    return tuple(Layer((Attention.of(cfg, i, qk_norm="width"), Moe.of(cfg))) for i in range(cfg.layers))


FAMILY = Family(
    gguf_architecture="olmoe",
    hf_classes=("OlmoeForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layers=layers,
    ends=DecoderEnds.of,
)
