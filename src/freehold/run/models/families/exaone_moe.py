"""K-EXAONE: EXAONE 4's attention behind norms that precede each half, a dense layer, then experts by sigmoids.

Three sliding layers alternate with a full one, which has no rope. A correction joins scores where experts are compared;
weights are divided by their sum and multiplied by a factor; a shared expert has no gate. Layers that predict further
tokens are left out.
Source: arXiv 2601.01739.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.mixtures import (
    MAX_EXPERTS,
    SIGMOID,
    gguf_shared_mixture,
    hf_groups,
    hf_mixture,
    listed_sparse,
)
from freehold.run.models.config.sizes import Sizes, gguf_sizes, gguf_windows, hf_decoder
from freehold.run.models.families.exaone4 import slides, stated_windows
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, mlp_or_experts

NAMES = MoeNames(
    shared="mlp.shared_experts",
    correction=("mlp.gate.e_score_correction_bias", "mlp.e_score_correction_bias"),
)


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), slides)
    return Sizes(**sizes, mixture=gguf_shared_mixture(meta, sizes, SIGMOID))


def config_from_hf(config: Fields) -> Sizes:
    config.require("scoring_func", ("sigmoid",), "sigmoid")
    sizes = hf_decoder(config, stated_windows, eps=1e-5)
    layers = len(sizes["heads"])
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        shared_experts=config.integer("num_shared_experts", 0, MAX_EXPERTS, 1),
        routing=hf_groups(config, SIGMOID),
        sparse=listed_sparse(config, layers, 1),
    )
    return Sizes(**sizes, mixture=mixture)


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    turns = cfg.windows[i] or not any(cfg.windows)
    attention = Attention.of(cfg, i, rope=cfg.rope if turns else None, qk_norm="head")
    return attention, mlp_or_experts(cfg, i, NAMES)


FAMILY = Family(
    gguf_architecture="exaone-moe",
    hf_classes=("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    model_types=("exaone_moe",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    ends=DecoderEnds.of,
    left_out=((r"(model\.)?mtp\.", "the layers that predict further tokens are left out"),),
)
