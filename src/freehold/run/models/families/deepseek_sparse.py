"""DeepSeek-V3.2 and GLM-5: V3's block, whose attention reads tokens that an indexer picks.

DeepSeek's indexer turns halves of its heads where its attention turns adjacent pairs; GLM's turns adjacent pairs, and
some of its layers take the picks of an earlier one.
Sources: arXiv 2512.02556 (DeepSeek-V3.2), GLM-5's model card.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.latents import STEP, gguf_latent, hf_latent
from freehold.run.models.config.mixtures import (
    SIGMOID,
    gguf_latent_mixture,
    hf_latent_mixture,
    state_groups,
)
from freehold.run.models.families.deepseek2 import NAMES
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import GatedMlp
from freehold.run.models.parts.moe import Moe, mlp_or_experts
from freehold.run.models.parts.sparse import SparseAttention, SparseEnds, SparseSizes

MOST_PICKS = 1 << 20  # native.Plan.pick takes no more
GLM = "glm-dsa"


def config_from_gguf(meta: Fields, vocab: int) -> SparseSizes:
    """Read the keys under `deepseek32.` or `glm-dsa.`."""
    sizes = gguf_latent(meta, vocab)
    mixture = gguf_latent_mixture(meta, sizes, replace(SIGMOID, renormalise=False))
    types = meta.get("attention.indexer.types")
    return _sized(
        sizes,
        mixture=mixture,
        index_heads=meta.integer("attention.indexer.head_count", 1, MAX_HEADS),
        index=meta.integer("attention.indexer.key_length", STEP, MAX_WIDTH),
        picked=meta.integer("attention.indexer.top_k", 1, MOST_PICKS),
        indexed=None if types is None else [bool(each) for each in types],
        adjacent=meta.name("").startswith(GLM),
    )


def config_from_hf(config: Fields) -> SparseSizes:
    config.require("scoring_func", ("sigmoid",), "sigmoid")
    glm = config.get("model_type") == "glm_moe_dsa"
    if not glm:
        state_groups(config)
    sizes = hf_latent(config)
    return _sized(
        sizes,
        mixture=hf_latent_mixture(config, sizes, SIGMOID),
        index_heads=config.integer("index_n_heads", 1, MAX_HEADS),
        index=config.integer("index_head_dim", STEP, MAX_WIDTH),
        picked=config.integer("index_topk", 1, MOST_PICKS),
        indexed=_stated_types(config, len(sizes["heads"])) if glm else None,
        adjacent=glm,
    )


def _stated_types(config: Fields, layers: int) -> list[bool]:
    """Tell which layers pick by themselves: stated one by one, by a pattern of letters, or by a period."""
    known = {"full": True, "F": True, "shared": False, "S": False}
    for key in ("indexer_types", "index_topk_pattern"):
        stated = config.get(key)
        if stated is None:
            continue
        if not isinstance(stated, list | str) or not all(
            isinstance(each, str) and each in known for each in stated
        ):
            raise UnsupportedModel(f"{key} is {str(stated)[:60]!r}; each layer is full (F) or shared (S)")
        return [known[each] for each in stated]
    period = config.integer("index_topk_freq", 1, layers, 1)
    offset = config.integer("index_skip_topk_offset", 0, layers, min(2, layers))
    return [max(i - offset + 1, 0) % period == 0 for i in range(layers)]


def _sized(sizes: dict[str, Any], *, indexed: list[bool] | None, **others: Any) -> SparseSizes:
    layers = len(sizes["heads"])
    own = tuple([True] * layers if indexed is None else indexed)
    if len(own) != layers:
        raise BadModelFile(f"indexers are stated for {len(own)} layers; the model has {layers}")
    if not own[0]:
        raise BadModelFile("the first layer has no indexer, and no layer before it picks for it")
    cfg = SparseSizes(**sizes, **others, indexed=own)
    if not cfg.query:
        raise UnsupportedModel("its indexer reads queries on their way, and the model states no q_lora_rank")
    if cfg.index % STEP or cfg.index < cfg.turned:
        raise UnsupportedModel(
            f"an index's keys are {cfg.index} wide, of which {cfg.turned} turn; supported: multiples of {STEP}"
        )
    return cfg


def layer(cfg: SparseSizes, i: int) -> tuple[LayerPart, ...]:
    return SparseAttention.at(cfg, i), mlp_or_experts(cfg, i, NAMES)


FAMILIES = tuple(
    Family(
        gguf_architecture=architecture,
        hf_classes=(hf_class,),
        model_types=(model_type,),
        config_from_gguf=config_from_gguf,
        config_from_hf=config_from_hf,
        parts=(SparseAttention, GatedMlp, Moe),
        layer=layer,
        ends=SparseEnds.of,
    )
    for architecture, model_type, hf_class in (
        ("deepseek32", "deepseek_v32", "DeepseekV32ForCausalLM"),
        (GLM, "glm_moe_dsa", "GlmMoeDsaForCausalLM"),
    )
)
