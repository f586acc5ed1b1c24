"""ERNIE 4.5 with experts: adjacent rotary pairs, a softmax router whose choice a correction shifts, shared experts.

Weights are divided by their sum, or by 1e-12 where that is less. The first layers are dense.
Source: the ERNIE 4.5 technical report (Baidu, 2025).
"""

from __future__ import annotations

from dataclasses import replace

from freehold.run.formats.fields import MAX_LAYERS, Fields
from freehold.run.models.config.mixtures import MAX_EXPERTS, gguf_shared_mixture, hf_mixture
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, mlp_or_experts

ROUTING = Routing(correction=True, least=1e-12)
NAMES = MoeNames(shared="mlp.shared_experts", correction="mlp.moe_statics.e_score_correction_bias")


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    return Sizes(**sizes, mixture=gguf_shared_mixture(meta, sizes, ROUTING))


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("use_bias", "a bias on projections")
    sizes = hf_decoder(config, base=5e5, adjacent=True, tied=True, eps=1e-5)
    layers = len(sizes["heads"])
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        chosen="moe_k" if config.get("moe_k") is not None else "num_experts_per_tok",
        shared_experts=config.integer("moe_num_shared_experts", 0, MAX_EXPERTS, 2),
        routing=replace(ROUTING, least=config.number("moe_norm_min", 0.0, 1.0, ROUTING.least)),
        sparse=_sparse(config, layers),
    )
    return Sizes(**sizes, mixture=mixture)


def _sparse(config: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have experts: every `interval`th from `start` to `end`, which may be -1 for the last."""
    start = config.integer("moe_layer_start_index", 0, MAX_LAYERS, 1)
    end = config.integer("moe_layer_end_index", -1, MAX_LAYERS, -1)
    step = config.integer("moe_layer_interval", 1, MAX_LAYERS, 1)
    last = layers - 1 if end == -1 else end
    return tuple((i + 1) % step == 0 and start <= i <= last for i in range(layers))


FAMILY = Family(
    gguf_architecture="ernie4_5-moe",
    hf_classes=("Ernie4_5_MoeForCausalLM",),
    model_types=("ernie4_5_moe",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=lambda cfg, i: (Attention.of(cfg, i), mlp_or_experts(cfg, i, NAMES)),
    ends=DecoderEnds.of,
    left_out=((r"model\.mtp_", "the layers that predict further tokens are left out"),),
)
