"""Step 3.5 and 3.7: attention whose heads differ in number by layer, each with a gate, and experts with limited gates.

Layers slide or see all tokens, each kind with a rope of its own; half of a full layer's head turns, scaled as in Llama.
Queries and keys pass a norm of each head. An expert computes down(min(silu(gate), limit) * clamp(up, +-limit)), with a
limit of each layer, and another for the shared expert; 0 is none. A correction joins sigmoid scores where experts are
compared. Lists in files of makers count the layers that draft, which come last and are left out.
Sources: transformers 5.24, models/step3p7; llama.cpp's loader and converter, read 2026-12.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import (
    MAX_SCALE,
    SIGMOID,
    gguf_shared_mixture,
    hf_mixture,
    listed_sparse,
)
from freehold.run.models.config.rope import MAX_BASE, RopeSpec, check_width, hf_layer_ropes
from freehold.run.models.config.sizes import (
    Sizes,
    check_heads,
    checked_sizes,
    gguf_layers,
    gguf_sizes,
    gguf_windows,
    hf_sizes,
    sliding_windows,
)
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp, NormForm
from freehold.run.models.parts.moe import Moe, MoeNames, either, fused

NORM = NormForm(offset=1.0)
FULL, SLIDING = "full_attention", "sliding_attention"
FIRST_SPARSE = 3  # of layers that no list divides
BASE = 10_000.0
MAX_LIMIT = 1e6
# What makers' files call sizes that transformers writes as others do, and lists that count the layers that draft.
CALLED = {
    "num_key_value_heads": "num_attention_groups",
    "num_experts_per_tok": "moe_top_k",
    "n_routed_experts": "moe_num_experts",
}
LISTS = (
    "layer_types",
    "mlp_layer_types",
    "partial_rotary_factors",
    "rope_theta",
    "swiglu_limits",
    "swiglu_limits_shared",
)
GGUF_LISTS = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.sliding_window_pattern",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
)
NAMES = MoeNames(
    experts=either(
        lambda key, sizes: (f"moe.{key}_proj.weight",),
        fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
    router=("moe.gate.weight", "mlp.gate.weight"),
    correction=("moe.router_bias", "mlp.gate.e_score_correction_bias"),
    shared=("share_expert", "mlp.shared_experts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSizes(Sizes):
    """Sizes of a Step 3.5; `rope` is that of the layers that see all tokens."""

    rope_local: RopeSpec
    scale: float  # of query times key
    limits: tuple[float, ...]  # of experts' gates, of each layer; 0: none
    shared_limits: tuple[float, ...]  # of shared experts' and dense MLPs'


def config_from_gguf(meta: Fields, vocab: int) -> StepSizes:
    layers = gguf_layers(meta)
    meta = meta.cut(GGUF_LISTS, meta.integer("block_count", 1, MAX_LAYERS), layers)
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    if meta.get("attention.sliding_window_pattern") is None:
        raise BadModelFile(f"{meta.name('attention.sliding_window_pattern')} is missing: which layers slide")
    sizes["windows"] = gguf_windows(meta, layers, lambda i: False)
    rope, head = sizes["rope"], sizes["head_dim"]
    sizes["rope"] = replace(rope, width=check_width(rope.width // 2, head))
    local = RopeSpec(
        base=meta.number("rope.freq_base_swa", 1.001, MAX_BASE, rope.base),
        width=check_width(meta.integer("rope.dimension_count_swa", 2, MAX_WIDTH, rope.width), head),
        adjacent=False,
        divisible=False,
    )
    return StepSizes(
        **sizes,
        mixture=gguf_shared_mixture(meta, sizes, SIGMOID),
        rope_local=local,
        scale=head**-0.5,
        limits=meta.numbers("swiglu_clamp_exp", layers, 0.0, MAX_LIMIT, 0.0),
        shared_limits=meta.numbers("swiglu_clamp_shexp", layers, 0.0, MAX_LIMIT, 0.0),
    )


def config_from_hf(config: Fields) -> StepSizes:
    """Read config.json of a Step 3.5, or the text half of a 3.7's, as its makers or transformers write it."""
    config.refuse("attention_bias", "a bias on attention")
    config.refuse("mlp_bias", "a bias on MLPs")
    config.require("hidden_act", ("silu",), "silu")
    config.require("moe_router_activation", ("sigmoid",), "sigmoid")
    layers = config.integer("num_hidden_layers", 1, MAX_LAYERS)
    drafts = config.integer("num_nextn_predict_layers", 0, MAX_LAYERS, 0)
    config = config.called(CALLED).cut(LISTS, layers + drafts, layers)
    sizes = hf_sizes(config, eps=1e-5, head_dim=128)
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0)
    windows = sliding_windows(config, layers, window, lambda i: False)
    sizes = checked_sizes(**sizes | {"heads": _heads(config, sizes, windows)})
    ropes = _ropes(config, sizes, windows)
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        shared=config.integer("share_expert_dim", 1, MAX_WIDTH),
        routing=replace(SIGMOID, scale=config.number("moe_router_scaling_factor", 1e-6, MAX_SCALE, 1.0)),
        sparse=_sparse(config, layers),
    )
    return StepSizes(
        **sizes,
        rope=ropes[0],
        rope_local=ropes[1],
        windows=windows,
        mixture=mixture,
        scale=config.number("query_pre_attn_scalar", 1e-3, MAX_WIDTH, sizes["head_dim"]) ** -0.5,
        limits=config.numbers("swiglu_limits", layers, 0.0, MAX_LIMIT, 0.0),
        shared_limits=config.numbers("swiglu_limits_shared", layers, 0.0, MAX_LIMIT, 0.0),
    )


def _heads(config: Fields, sizes: dict[str, Any], windows: tuple[int, ...]) -> tuple[int, ...]:
    """Give each layer its query heads: sliding ones may have others, with as many key heads, as wide."""
    other = config.section("attention_other_setting") or Fields({})
    for key, own in (("num_attention_groups", sizes["kv_heads"][0]), ("head_dim", sizes["head_dim"])):
        if other.integer(key, 1, MAX_WIDTH, own) != own:
            raise UnsupportedModel(
                f"attention_other_setting.{key} is {other.get(key)}, and {own} in other layers"
            )
    sliding = other.integer("num_attention_heads", 1, MAX_HEADS, sizes["heads"][0])
    sliding = config.integer("num_sliding_attention_heads", 1, MAX_HEADS, sliding)
    heads = tuple(sliding if window else own for window, own in zip(windows, sizes["heads"], strict=True))
    check_heads(config.name("num_key_value_heads"), heads, sizes["kv_heads"])
    return heads


def _ropes(config: Fields, sizes: dict[str, Any], windows: tuple[int, ...]) -> tuple[RopeSpec, RopeSpec]:
    """Return the ropes of full and of sliding layers: one object a kind, or lists of bases and shares by layer."""
    layers = len(windows)
    bases = config.numbers("rope_theta", layers, 1.001, MAX_BASE, BASE)
    shares = config.numbers("partial_rotary_factors", layers, 1e-3, 1.0, 1.0)
    scaling = config.section("rope_scaling")
    kinds: dict[str, dict[str, Any]] = {}
    for base, share, window in zip(bases, shares, windows, strict=True):
        own = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}
        if not window and scaling is not None:
            own |= scaling.values
        if kinds.setdefault(SLIDING if window else FULL, own) != own:
            raise UnsupportedModel("rope_theta or partial_rotary_factors differ among layers of a kind")
    either_kind = next(iter(kinds.values()))
    stated = {FULL: either_kind, SLIDING: either_kind} | kinds
    options: dict[str, Any] = {"head_dim": sizes["head_dim"], "context": sizes["context"]}
    return hf_layer_ropes(config.assuming(rope_parameters=stated), base=BASE, local_base=BASE, **options)


def _sparse(config: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have experts: by kinds, or numbers in a text, or all but the first three."""
    listed: Any = config.get("moe_layers_enum")
    if listed is None or config.get("mlp_layer_types") is not None:
        return listed_sparse(config, layers, min(FIRST_SPARSE, layers))
    numbers = listed.split(",") if isinstance(listed, str) else listed
    try:
        chosen = {int(number) for number in numbers}
    except (TypeError, ValueError):
        raise BadModelFile(f"moe_layers_enum is {str(listed)[:60]!r}; expected numbers of layers") from None
    return tuple(i in chosen for i in range(layers))


def layer(cfg: StepSizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(
        cfg,
        i,
        rope=cfg.rope_local if cfg.windows[i] else cfg.rope,
        norm=NORM,
        qk_norm="head",
        scale=cfg.scale,
        gate="g_proj",
        gate_heads=True,
    )
    assert cfg.mixture is not None, "both readers give one"
    limit = cfg.shared_limits[i]
    if cfg.mixture.sparse[i]:
        return attention, Moe.of(cfg, NAMES, norm=NORM, limit=cfg.limits[i], shared_limit=limit)
    return attention, GatedMlp.of(cfg, i, norm=NORM, limit=limit)


FAMILY = Family(
    gguf_architecture="step35",
    hf_classes=("Step3p5ForCausalLM",),
    wrappers=("Step3p7ForConditionalGeneration",),
    model_types=("step3p5", "step3p7"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    ends=lambda cfg: DecoderEnds.of(cfg, norm=NORM),
)
