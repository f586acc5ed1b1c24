"""GLM-4.5, 4.5V, 4.6, 4.6V and 4.7: attention with biases, a few dense layers, then experts behind a sigmoid router.

A correction joins scores where experts are compared; weights are divided by their sum and multiplied by a factor; a
shared expert has no gate. Rope turns half of a head. Queries and keys are normalised in the larger models alone, which
a GGUF tells by its tensors. The first layer after the last drafts. In those that see, rows of pictures turn
by time, row and column, whose sections of pairs lie one after another. Solar Open is the same without dense layers,
biases and norms of queries and keys, and turns whole heads. Tower: towers/glm4v.py.
Sources: arXiv 2508.06471 (GLM-4.5), 2507.01006 (GLM-4.5V).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import (
    MAX_EXPERTS,
    dense_first,
    gguf_shared_mixture,
    hf_groups,
    hf_mixture,
)
from freehold.run.models.config.rope import Sections, gguf_sections, hf_sections
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, Layer, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.drafting import head_network
from freehold.run.models.parts.moe import Moe, MoeNames, mlp_or_experts

ROUTING = Routing(scoring="sigmoid", correction=True, group_score="top2", epsilon=1e-20)
SECTIONS: Sections = (8, 12, 12)  # of a model that sees, where its config does not state them
SEEING = ("glm4v_moe", "glm4v_moe_text")
SOLAR = "solar_open"
NAMES = MoeNames(shared="mlp.shared_experts", gguf_norm="post_attention_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Glm4MoeSizes(Sizes):
    """Sizes of a GLM-4.5, and what its attention has."""

    qk_norm: bool | None  # None: where the file has its weights
    bias: Literal["none", "qkv", "any"]


def config_from_gguf(meta: Fields, vocab: int) -> Glm4MoeSizes:
    width = meta.integer(
        "expert_feed_forward_length", 1, MAX_WIDTH
    )  # where no layer is dense, none other is stated
    sizes = gguf_sizes(meta, vocab, adjacent=False, intermediate=width)
    mixture = gguf_shared_mixture(meta, sizes, ROUTING)
    if meta.get("rope.dimension_sections") is not None:
        sizes["rope"] = gguf_sections(meta, sizes["rope"], SECTIONS, interleaved=False)
    return Glm4MoeSizes(**sizes, mixture=mixture, qk_norm=None, bias="any")


def config_from_hf(config: Fields) -> Glm4MoeSizes:
    solar = config.text("model_type", "") == SOLAR
    sizes = _solar_sizes(config) if solar else hf_decoder(config, partial=0.5, eps=1e-5)
    layers = len(sizes["heads"])
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        shared_experts=config.integer("n_shared_experts", 0, MAX_EXPERTS, 1),
        routing=hf_groups(config, ROUTING),
        sparse=dense_first(config, layers, default=0 if solar else 1),
    )
    sees = config.text("model_type", "") in SEEING
    if sees:
        sizes["rope"] = hf_sections(config, sizes["rope"], SECTIONS, interleaved=False)
    bias = "qkv" if config.flag("attention_bias", sees) else "none"
    return Glm4MoeSizes(**sizes, mixture=mixture, qk_norm=config.flag("use_qk_norm", False), bias=bias)


def _solar_sizes(config: Fields) -> dict[str, Any]:
    width = config.integer("moe_intermediate_size", 1, MAX_WIDTH)
    return hf_decoder(config, base=1e6, eps=1e-5, head_dim=128, intermediate_size=width)


def layer(cfg: Glm4MoeSizes, i: int) -> tuple[LayerPart, ...]:
    norm: dict[str, Any] = {"qk_norm": "none" if cfg.qk_norm is False else "head"}
    attention = Attention.of(cfg, i, bias=cfg.bias, qk_maybe=cfg.qk_norm is None, **norm)
    return attention, mlp_or_experts(cfg, i, NAMES)


FAMILY = Family(
    gguf_architecture="glm4moe",
    hf_classes=("Glm4MoeForCausalLM", "SolarOpenForCausalLM"),
    wrappers=("Glm4vMoeForConditionalGeneration", "Glm46VForConditionalGeneration"),
    model_types=("glm4_moe", SOLAR, *SEEING),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    head=lambda cfg: head_network(DecoderEnds.of(cfg), Layer(layer(cfg, cfg.layers - 1))),
    ends=DecoderEnds.of,
    towers=("glm4v",),
)
