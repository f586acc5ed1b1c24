"""Command A's successors with experts: Command R7B's block, in which most layers have a mixture beside attention.

    x += attention(n) + mixture(n),  n = norm(x), a layer norm, or an RMS norm where a file states its epsilon

The logits of a router choose, and the chosen ones pass a softmax, or sigmoids that may be divided by their sum. With
shared experts the mean of both halves is added, or their sum. Sliding layers have a rope, and of the others the dense
ones at the beginning.
Sources: transformers 5.24, models/cohere2_moe; llama.cpp's loader and converter, read 2026-12.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import (
    GATINGS,
    MAX_EXPERTS,
    dense_first,
    gguf_shared_mixture,
    hf_mixture,
    listed_sparse,
)
from freehold.run.models.config.sizes import (
    Routing,
    Sizes,
    checked_sizes,
    gguf_layers,
    gguf_sizes,
    gguf_windows,
    hf_decoder,
    sliding_windows,
)
from freehold.run.models.families.cohere import LOGIT_SCALE
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import NO_NORM, Attention, DecoderEnds, GatedMlp, NormForm
from freehold.run.models.parts.moe import Moe, MoeNames, apart, either, fused
from freehold.run.models.parts.parallel import ParallelBlock

PATTERN = 4  # every fourth layer has full attention
SIGMOID_GATING = 2  # of a GGUF that states none
MEAN = {"average": 0.5, "sum": 1.0}  # what both halves are multiplied by
NAMES = MoeNames(
    experts=either(apart("mlp.experts.{e}"), fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
    shared="mlp.shared_experts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohereMoeSizes(Sizes):
    """Sizes of a Command with experts."""

    logit_scale: float
    norm: NormForm
    turned: int  # dense layers at the beginning that have a rope although they see all tokens
    share: float  # of what experts, and shared ones, give


def _norm(rms: bool) -> NormForm:
    return NormForm(apart=True) if rms else NormForm(kind="layer")


def config_from_gguf(meta: Fields, vocab: int) -> CohereMoeSizes:
    layers = gguf_layers(meta)
    counted = meta.integer("block_count", 1, MAX_LAYERS)
    meta = meta.cut(("attention.sliding_window_pattern",), counted, layers)
    rms = meta.get("attention.layer_norm_rms_epsilon") is not None
    eps = "layer_norm_rms_epsilon" if rms else "layer_norm_epsilon"
    sizes = gguf_sizes(meta, vocab, adjacent=True, eps=eps)
    sizes["windows"] = gguf_windows(meta, layers, lambda i: (i + 1) % PATTERN != 0)
    scoring = GATINGS.get(meta.integer("expert_gating_func", 0, 255, 0) or SIGMOID_GATING, "softmax")
    routing = Routing(scoring=scoring, renormalise=False)  # pyright: ignore[reportArgumentType]
    mixture = gguf_shared_mixture(meta, sizes, routing)
    return CohereMoeSizes(
        **sizes,
        mixture=mixture,
        logit_scale=meta.number("logit_scale", 1e-6, 1e6),
        norm=_norm(rms),
        turned=meta.integer("leading_dense_block_count", 0, layers, 0),
        share=MEAN["average"] if mixture.shared else 1.0,
    )


def config_from_hf(config: Fields) -> CohereMoeSizes:
    config.refuse("attention_bias", "a bias on attention")
    scoring = config.require("expert_selection_fn", ("softmax", "sigmoid"), "softmax")
    strategy = config.require("shared_expert_combination_strategy", tuple(MEAN), "average")
    rms = config.get("rms_norm_eps") is not None
    sizes = hf_decoder(
        config,
        _windows,
        adjacent=True,
        tied=True,
        eps=1e-5,
        eps_key="rms_norm_eps" if rms else "layer_norm_eps",
        head_dim=128,
    )
    layers = len(sizes["heads"])
    sparse = listed_sparse(config, layers, 0)
    shared = config.integer("num_shared_experts", 0, MAX_EXPERTS, 0)
    normed = scoring == "softmax" or config.flag("norm_topk_prob", True)
    mixture = hf_mixture(
        config,
        "intermediate_size",
        layers,
        shared_experts=shared,
        routing=Routing(scoring=scoring, renormalise=normed),  # pyright: ignore[reportArgumentType]
        sparse=sparse,
    )
    dense = config.integer("prefix_dense_intermediate_size", 1, MAX_WIDTH, sizes["intermediate"][0])
    turns = config.integer("prefix_dense_sliding_window_pattern", 1, MAX_LAYERS, 1) == 1
    return CohereMoeSizes(
        **checked_sizes(**sizes | {"intermediate": (dense,) * layers}),
        mixture=mixture,
        logit_scale=config.number("logit_scale", 1e-6, 1e6, LOGIT_SCALE),
        norm=_norm(rms),
        turned=sparse.index(True) if turns and True in sparse else 0,
        share=MEAN[strategy] if shared else 1.0,
    )


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    """Dense layers at the beginning count by themselves."""
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 4096)
    every = config.integer("sliding_window_pattern", 1, MAX_LAYERS, PATTERN)
    first_every = config.integer("prefix_dense_sliding_window_pattern", 1, MAX_LAYERS, 1)
    first = dense_first(config, layers, 0).count(False)

    def slides(i: int) -> bool:
        return (i + 1) % first_every != 0 if i < first else (i - first + 1) % every != 0

    return sliding_windows(config, layers, window, slides)


def layer(cfg: CohereMoeSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its block; full attention knows no positions."""
    turns = cfg.windows[i] or i < cfg.turned
    attention = Attention.of(cfg, i, norm=cfg.norm, rope=cfg.rope if turns else None)
    assert cfg.mixture is not None, "both readers give one"
    if cfg.mixture.sparse[i]:
        return (ParallelBlock(attention, Moe.of(cfg, NAMES, norm=NO_NORM, residual=cfg.share)),)
    return (ParallelBlock(attention, GatedMlp.of(cfg, i, norm=NO_NORM)),)


FAMILY = Family(
    gguf_architecture="cohere2moe",
    hf_classes=("Cohere2MoeForCausalLM",),
    model_types=("cohere2_moe",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(ParallelBlock, Moe),
    layer=layer,
    ends=lambda cfg: DecoderEnds.of(cfg, norm=cfg.norm, logit_scale=cfg.logit_scale),
)
