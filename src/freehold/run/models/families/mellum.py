"""Mellum 2: Qwen3-MoE's block, whose layers slide or see all tokens, each kind with a rope of its own.

Weights of chosen experts are divided by their sum. A layer that predicts a further token is left out.
Source: transformers 5.24, models/mellum; JetBrains' page on Mellum 2 of 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture, listed_sparse
from freehold.run.models.config.rope import RopeSpec, hf_layer_ropes
from freehold.run.models.config.sizes import (
    Routing,
    Sizes,
    gguf_sizes,
    gguf_windows,
    hf_sizes,
    sliding_windows,
)
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, mlp_or_experts

BASES: dict[str, Any] = {"base": 500_000.0, "local_base": 10_000.0}  # what the class assumes


@dataclass(frozen=True, slots=True, kw_only=True)
class MellumSizes(Sizes):
    """Sizes of a Mellum; `rope` is that of the layers that see all tokens."""

    rope_local: RopeSpec


def config_from_gguf(meta: Fields, vocab: int) -> MellumSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), lambda i: False)
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, sizes["rope"].base)
    local = RopeSpec(base=base, width=sizes["rope"].width, adjacent=False)
    return MellumSizes(**sizes, mixture=gguf_mixture(meta, sizes), rope_local=local)


def config_from_hf(config: Fields) -> MellumSizes:
    config.require("hidden_act", ("silu",), "silu")
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_sizes(config, head_dim=128)
    layers = len(sizes["heads"])
    ropes = hf_layer_ropes(config, head_dim=sizes["head_dim"], context=sizes["context"], **BASES)
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 1024)
    routing = Routing(renormalise=config.flag("norm_topk_prob", True))
    return MellumSizes(
        **sizes,
        rope=ropes[0],
        rope_local=ropes[1],
        windows=sliding_windows(config, layers, window, lambda i: False),
        mixture=hf_mixture(
            config, "moe_intermediate_size", layers, routing=routing, sparse=listed_sparse(config, layers, 0)
        ),
    )


def layer(cfg: MellumSizes, i: int) -> tuple[LayerPart, ...]:
    rope = cfg.rope_local if cfg.windows[i] else cfg.rope
    return Attention.of(cfg, i, rope=rope, qk_norm="head"), mlp_or_experts(cfg, i)


FAMILY = Family(
    gguf_architecture="mellum",
    hf_classes=("MellumForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    ends=DecoderEnds.of,
    left_out=((r"(model\.)?mtp\.", "the layers that predict further tokens are left out"),),
)
