"""DeepSeek-V3.2 and GLM-5: V3's block, whose attention reads tokens that an indexer picks, as far as it picks all.

The indexer picks the best index_topk of the tokens before. A sequence of no more than that is attended to whole, as a
model without an indexer does; longer ones are not run: the number is the longest context.
Sources: arXiv 2512.02556 (DeepSeek-V3.2), GLM-5's model card.
"""

from __future__ import annotations

from dataclasses import replace

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.latents import LatentSizes, gguf_latent, hf_latent
from freehold.run.models.config.mixtures import (
    SIGMOID,
    gguf_latent_mixture,
    hf_latent_mixture,
    state_groups,
)
from freehold.run.models.families.deepseek2 import layer
from freehold.run.models.family import Family, Rule
from freehold.run.models.parts import DecoderEnds, GatedMlp
from freehold.run.models.parts.latent import LatentAttention
from freehold.run.models.parts.moe import Moe

INDEXER = r"(blk\.\d+|model\.layers\.\d+\.self_attn)\.indexer\."


def config_from_gguf(meta: Fields, vocab: int) -> LatentSizes:
    """Read the keys under `deepseek32.` or `glm-dsa.`."""
    sizes = gguf_latent(meta, vocab)
    mixture = gguf_latent_mixture(meta, sizes, replace(SIGMOID, renormalise=False))
    return _bounded(
        LatentSizes(**sizes, mixture=mixture), meta.integer("attention.indexer.top_k", 1, MAX_CONTEXT)
    )


def config_from_hf(config: Fields) -> LatentSizes:
    config.require("scoring_func", ("sigmoid",), "sigmoid")
    if config.get("model_type") != "glm_moe_dsa":
        state_groups(config)
    sizes = hf_latent(config)
    mixture = hf_latent_mixture(config, sizes, SIGMOID)
    return _bounded(LatentSizes(**sizes, mixture=mixture), config.integer("index_topk", 1, MAX_CONTEXT))


def _bounded(cfg: LatentSizes, picked: int) -> LatentSizes:
    """End the context where the indexer begins to choose."""
    if cfg.context <= picked:
        return cfg
    note = (
        f"the context ends at {picked:,} tokens: beyond, this model reads only tokens that its indexer picks, "
        "which is not computed"
    )
    return replace(cfg, context=picked, notes=(*cfg.notes, note))


def not_computed(cfg: LatentSizes) -> tuple[Rule, ...]:
    """Name the indexers."""
    return ((INDEXER, "the indexers are left out: within this context they pick every token"),)


FAMILIES = tuple(
    Family(
        gguf_architecture=architecture,
        hf_classes=(hf_class,),
        model_types=(model_type,),
        config_from_gguf=config_from_gguf,
        config_from_hf=config_from_hf,
        parts=(LatentAttention, GatedMlp, Moe),
        layer=layer,
        ends=DecoderEnds.of,
        left_out_of=not_computed,
    )
    for architecture, model_type, hf_class in (
        ("deepseek32", "deepseek_v32", "DeepseekV32ForCausalLM"),
        ("glm-dsa", "glm_moe_dsa", "GlmMoeDsaForCausalLM"),
    )
)
