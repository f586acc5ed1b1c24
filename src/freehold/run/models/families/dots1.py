"""dots.llm1: attention with normalised queries and keys, a few dense layers, then experts behind a sigmoid router.

A correction joins scores where experts are compared; weights are divided by their sum where a file says so, and
multiplied by a factor; shared experts have no gate. Layers from a stated one on may slide, which a GGUF cannot state;
of the published models none slides.
Source: arXiv 2506.05767.
"""

from __future__ import annotations

from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from freehold.run.models.config.mixtures import (
    MAX_EXPERTS,
    dense_first,
    gguf_shared_mixture,
    hf_groups,
    hf_mixture,
)
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder, sliding_windows
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, mlp_or_experts

ROUTING = Routing(scoring="sigmoid", renormalise=False, correction=True, group_score="top2", epsilon=1e-20)
NAMES = MoeNames(shared="mlp.shared_experts")


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    return Sizes(**sizes, mixture=gguf_shared_mixture(meta, sizes, ROUTING))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a Dots1ForCausalLM; published ones name the router by its training."""
    config.refuse("attention_bias", "a bias on attention")
    config.require("scoring_func", ("sigmoid", "noaux_tc"), "sigmoid")
    sizes = hf_decoder(config, _windows)
    layers = len(sizes["heads"])
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        shared_experts=config.integer("n_shared_experts", 1, MAX_EXPERTS),
        routing=hf_groups(config, ROUTING),
        sparse=dense_first(config, layers, default=0),
    )
    return Sizes(**sizes, mixture=mixture)


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    """Layers from `max_window_layers` on slide, unless `sliding_window` is null; no other key says whether they do."""
    null = "sliding_window" in config.values and config.get("sliding_window") is None
    window = 0 if null else config.integer("sliding_window", 1, MAX_CONTEXT, 4096)
    first = config.integer("max_window_layers", 0, MAX_LAYERS, 62)
    return sliding_windows(config, layers, window, lambda i: i >= first)


FAMILY = Family(
    gguf_architecture="dots1",
    hf_classes=("Dots1ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=lambda cfg, i: (Attention.of(cfg, i, qk_norm="head"), mlp_or_experts(cfg, i, NAMES)),
    ends=DecoderEnds.of,
)
