"""The experts of models with latent attention, as both file formats state them.

Knows the keys that DeepSeek named and others took over; knows no tensor and no arithmetic.
Path: families.<family>.config_from_* -> gguf_latent_mixture or hf_latent_mixture -> Mixture -> parts.moe
"""

from __future__ import annotations

from typing import Any

from freehold.errors import UnsupportedModel
from freehold.formats.fields import MAX_LAYERS, MAX_WIDTH, Fields
from freehold.models.config.mixtures import (
    MAX_EXPERTS,
    MAX_SCALE,
    chosen_of,
    gguf_mixture,
    hf_groups,
    listed_sparse,
    mixture,
)
from freehold.models.config.sizes import Mixture, Routing

# Sigmoids; a correction joins scores where experts are compared; groups by the sum of their best two.
SIGMOID = Routing(scoring="sigmoid", correction=True, group_score="top2", epsilon=1e-20)
SOFTMAX = Routing(group_score="top2", epsilon=1e-20)
V2 = Routing(renormalise=False, group_score="best")


def gguf_latent_mixture(meta: Fields, sizes: dict[str, Any], routing: Routing) -> Mixture:
    """Read a GGUF's experts; `routing` is what the file need not state of it."""
    layers = len(sizes["heads"])
    first = meta.integer("leading_dense_block_count", 0, layers, 0)
    width = meta.integer("expert_feed_forward_length", 1, MAX_WIDTH)
    return gguf_mixture(
        meta,
        sizes,
        intermediate=width,
        shared=width * meta.integer("expert_shared_count", 0, 64, 0),
        routing=routing,
        sparse=tuple(i >= first for i in range(layers)),
    )


def hf_latent_mixture(config: Fields, sizes: dict[str, Any], routing: Routing) -> Mixture:
    """Read config.json's experts; all shared ones of a layer are one MLP."""
    layers = len(sizes["heads"])
    if config.integer("moe_layer_freq", 1, MAX_LAYERS, 1) != 1:
        raise UnsupportedModel(
            "moe_layer_freq is not 1: dense layers between those of experts are not supported"
        )
    if routing.scoring == "sigmoid":  # no tensor tells it, and each class assumes another
        config.number("routed_scaling_factor", 1e-6, MAX_SCALE)
    width = config.integer("moe_intermediate_size", 1, MAX_WIDTH)
    experts = config.integer("n_routed_experts", 1, MAX_EXPERTS)
    return mixture(
        experts,
        chosen_of(config, "num_experts_per_tok", experts),
        sizes["hidden"],
        width,
        layers,
        shared=width * config.integer("n_shared_experts", 0, 64, 0),
        routing=hf_groups(config, routing),
        sparse=listed_sparse(config, layers),
    )


def state_groups(config: Fields) -> None:
    """Raise where a config does not state its groups: V3's class assumes 8 and 4, which no tensor would contradict."""
    for key in ("n_group", "topk_group"):
        config.integer(key, 1, MAX_EXPERTS)
