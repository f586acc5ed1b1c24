"""DeepSeek-V2, V2-Lite, V3, R1 and V3.1, Kimi K2, Moonlight and GLM-4.7-Flash: latent attention, fine-grained experts.

The first layers have a dense MLP, the others experts and one MLP that every token passes. V2 scores experts by a
softmax and compares groups by their best expert; V3 and what follows it by sigmoids with a correction, and groups by
their best two. A GGUF calls all of them deepseek2, and Mistral Large 3, whose softmax is renormalised, too.
Sources: arXiv 2405.04434 (V2), 2412.19437 (V3), 2507.20534 (Kimi K2).
"""

from __future__ import annotations

from dataclasses import replace

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.mistral_names import LARGE_3
from freehold.run.models.config.latents import LatentSizes, gguf_latent, hf_latent
from freehold.run.models.config.mixtures import (
    SIGMOID,
    SOFTMAX,
    V2,
    gguf_latent_mixture,
    hf_latent_mixture,
    state_groups,
)
from freehold.run.models.config.sizes import Routing
from freehold.run.models.family import Family, Layer, LayerPart
from freehold.run.models.parts import DecoderEnds, GatedMlp
from freehold.run.models.parts.drafting import head_network
from freehold.run.models.parts.latent import LatentAttention
from freehold.run.models.parts.moe import Moe, MoeNames, mlp_or_experts

NAMES = MoeNames(shared="mlp.shared_experts")
SIGMOID_GATING = 2
# Early files of GLM-4.7-Flash state no gating; one layer may draft.
FLASH_LAYERS, FLASH_VOCAB = (47, 48), 154_880


def config_from_gguf(meta: Fields, vocab: int) -> LatentSizes:
    """Read the keys under `deepseek2.`; weights are divided by their sum only where stated."""
    sizes = gguf_latent(meta, vocab)
    flash = len(sizes["heads"]) in FLASH_LAYERS and sizes["vocab"] == FLASH_VOCAB
    gating = meta.integer("expert_gating_func", 0, 255, SIGMOID_GATING if flash else 0)
    routing = replace(SIGMOID, renormalise=False) if gating == SIGMOID_GATING else V2
    return LatentSizes(**sizes, mixture=gguf_latent_mixture(meta, sizes, routing))


def config_from_hf(config: Fields) -> LatentSizes:
    """Read config.json of one of the classes; its model_type says which router it has."""
    kind = config.text("model_type", "deepseek_v3")
    routing = _v2(config) if kind == "deepseek_v2" else SOFTMAX if kind == LARGE_3 else _v3(config)
    sizes = hf_latent(config)
    return LatentSizes(**sizes, mixture=hf_latent_mixture(config, sizes, routing))


def _v2(config: Fields) -> Routing:
    config.require("scoring_func", ("softmax",), "softmax")
    config.refuse("norm_topk_prob", "weights of V2's experts that are divided by their sum")
    method = config.require("topk_method", ("greedy", "group_limited_greedy"), "greedy")
    if method == "greedy" and config.integer("n_group", 1, 4096, 1) != 1:
        raise UnsupportedModel("topk_method is 'greedy', but n_group names groups of experts")
    return V2


def _v3(config: Fields) -> Routing:
    config.require("scoring_func", ("sigmoid",), "sigmoid")
    config.require("topk_method", ("noaux_tc",), "noaux_tc")
    if config.get("model_type") != "glm4_moe_lite":
        state_groups(config)
    return SIGMOID


def layer(cfg: LatentSizes, i: int) -> tuple[LayerPart, ...]:
    return LatentAttention.of(cfg, i), mlp_or_experts(cfg, i, NAMES)


FAMILY = Family(
    gguf_architecture="deepseek2",
    hf_classes=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM", "MistralLarge3"),
    wrappers=(
        "KimiVLForConditionalGeneration",
        "KimiK25ForConditionalGeneration",
        "Kimi_K25ForConditionalGeneration",
    ),
    model_types=("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(LatentAttention, GatedMlp, Moe),
    layer=layer,
    head=lambda cfg: head_network(DecoderEnds.of(cfg), Layer(layer(cfg, cfg.layers - 1))),
    ends=DecoderEnds.of,
    towers=("kimivl",),
)
