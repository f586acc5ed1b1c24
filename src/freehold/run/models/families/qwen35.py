"""Qwen3.5, 3.6 and 3.8, dense and as mixtures: Qwen3-Next's layers with DeltaNet's projections stored apart.

A GGUF lays value heads in turns of the key heads, safetensors group them by key head. Positions have three sections,
for pictures; of text all are the same. Published files are wrappers with a vision tower, towers/qwen3vl.py.
Sources: Qwen3.5's model cards of 2026, arXiv 2412.06464 (gated DeltaNet).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.rope import Sections, gguf_sections, hf_sections
from freehold.run.models.families.qwen3next import NAMES, TURNED, ends, mixer, mlp
from freehold.run.models.families.qwen3next import head as head_of
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, GatedMlp
from freehold.run.models.parts.deltanet import DeltaNet, HybridSizes, gguf_hybrid, hf_hybrid
from freehold.run.models.parts.moe import Moe, apart, either, fused

# Experts are fused as the Hub has them, or apart as transformers writes them.
FUSED = fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
MIXED_NAMES = replace(NAMES, experts=either(FUSED, apart("mlp.experts.{e}")))
SECTIONS: Sections = (11, 11, 10)  # where a file does not state them


def dense_from_gguf(meta: Fields, vocab: int) -> HybridSizes:
    return HybridSizes(**_gguf_sizes(meta, vocab), tiled=True)


def dense_from_hf(config: Fields) -> HybridSizes:
    return HybridSizes(**_hf_sizes(_checked(config)))


def mixed_from_gguf(meta: Fields, vocab: int) -> HybridSizes:
    """Read the keys under `qwen35moe.`; no layer is dense, so there may be no size of one."""
    inner = meta.integer("expert_feed_forward_length", 1, MAX_WIDTH)
    sizes = _gguf_sizes(meta.assuming(feed_forward_length=inner), vocab)
    shared = meta.integer("expert_shared_feed_forward_length", 1, MAX_WIDTH, inner)
    return HybridSizes(
        **sizes, tiled=True, mixture=gguf_mixture(meta, sizes, shared=shared, shared_gate=True)
    )


def mixed_from_hf(config: Fields) -> HybridSizes:
    config = _checked(config)
    inner = config.integer("moe_intermediate_size", 1, MAX_WIDTH)
    sizes = _hf_sizes(config.assuming(intermediate_size=inner))
    shared = config.integer("shared_expert_intermediate_size", 1, MAX_WIDTH)
    layers = len(sizes["heads"])
    mixture = hf_mixture(config, "moe_intermediate_size", layers, shared=shared, shared_gate=True)
    return HybridSizes(**sizes, mixture=mixture)


def _gguf_sizes(meta: Fields, vocab: int) -> dict[str, Any]:
    sizes = gguf_hybrid(meta, vocab)
    return sizes | {"rope": gguf_sections(meta, sizes["rope"], SECTIONS, interleaved=True)}


def _hf_sizes(config: Fields) -> dict[str, Any]:
    sizes = hf_hybrid(config, head_dim=256)
    return sizes | {"rope": hf_sections(config, sizes["rope"], SECTIONS, interleaved=True)}


def _checked(config: Fields) -> Fields:
    config.refuse("mlp_only_layers", "a dense MLP in some layers")
    if not config.flag("attn_output_gate", True):
        raise UnsupportedModel("attn_output_gate is false: attention without a gate is not supported here")
    return config.assuming(partial_rotary_factor=TURNED)


def layer(cfg: HybridSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its mixer, and its MLP or experts."""
    return mixer(cfg, i, "apart"), mlp(cfg, i, MIXED_NAMES)


DENSE = Family(
    gguf_architecture="qwen35",
    hf_classes=("Qwen3_5ForCausalLM",),
    wrappers=("Qwen3_5ForConditionalGeneration",),
    model_types=("qwen3_5", "qwen3_5_text"),
    config_from_gguf=dense_from_gguf,
    config_from_hf=dense_from_hf,
    parts=(Attention, DeltaNet, GatedMlp),
    layer=layer,
    ends=ends,
    towers=("qwen3vl",),
    head=lambda cfg: head_of(cfg, layer),
)
MIXED = replace(
    DENSE,
    gguf_architecture="qwen35moe",
    hf_classes=("Qwen3_5MoeForCausalLM",),
    wrappers=("Qwen3_5MoeForConditionalGeneration",),
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    config_from_gguf=mixed_from_gguf,
    config_from_hf=mixed_from_hf,
    parts=(Attention, DeltaNet, Moe),
)
FAMILIES = (DENSE, MIXED)
