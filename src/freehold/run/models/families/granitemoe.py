"""Granite 3 with experts: the dense model's factors, a softmax over the chosen experts, in some a shared one.

GGUF files hold q and k rows permuted so that adjacent elements turn together; safetensors hold halves.
Source: IBM's Granite 3 report of October 2024.
"""

from __future__ import annotations

from typing import Any

from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.sizes import gguf_sizes, hf_decoder
from freehold.run.models.families.granite import GraniteSizes, ends, gguf_factors, hf_factors
from freehold.run.models.families.granitehybrid import EXPERTS, GraniteMoe
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention


def config_from_gguf(meta: Fields, vocab: int) -> GraniteSizes:
    """Read the keys under `granitemoe.`; an expert is as wide as they say an MLP is."""
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    options: dict[str, Any] = {
        "intermediate": sizes["intermediate"][0],
        "shared": meta.integer("expert_shared_feed_forward_length", 0, MAX_WIDTH, 0),
    }
    return GraniteSizes(**sizes, **gguf_factors(meta), mixture=gguf_mixture(meta, sizes, **options))


def config_from_hf(config: Fields) -> GraniteSizes:
    """Read config.json of a GraniteMoeForCausalLM, or of one whose class adds a shared expert."""
    config.refuse("mlp_bias", "a bias on the MLP")
    sizes, layers = hf_decoder(config), config.integer("num_hidden_layers", 1, MAX_WIDTH)
    shared = config.integer("shared_intermediate_size", 0, MAX_WIDTH, 0)
    mixture = hf_mixture(config, "intermediate_size", layers, shared=shared)
    return GraniteSizes(**sizes, **hf_factors(config), mixture=mixture)


def layer(cfg: GraniteSizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(cfg, i, bias="any", gguf_pairs=True, scale=cfg.scale, residual=cfg.residual)
    return attention, GraniteMoe.of(cfg, EXPERTS, residual=cfg.residual)


FAMILY = Family(
    gguf_architecture="granitemoe",
    hf_classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    model_types=("granitemoeshared",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GraniteMoe),
    layer=layer,
    ends=ends,
)
