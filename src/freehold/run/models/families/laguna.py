"""Laguna: attention whose heads differ in number by layer, each head with a softplus gate; sigmoid routers.

Layers slide or see all tokens, each kind with a rope of its own; queries and keys pass a norm of each head before they
turn. A correction joins scores where experts are compared; weights are divided by their sum and multiplied by a factor.
The first layers have a dense MLP, the others a shared expert too. A GGUF does not state which layers slide: as in all
published models with a window, all but the first of four. Nor does it state whether a gate is of each head or of each
value: the former is read, as Laguna XS has it, and a file with the latter is refused by its shape.
Sources: transformers 5.24, models/laguna; llama.cpp's loader, read 2026-12.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import (
    MAX_SCALE,
    SIGMOID,
    gguf_shared_mixture,
    hf_mixture,
    listed_sparse,
)
from freehold.run.models.config.rope import RopeSpec, check_width, hf_layer_ropes
from freehold.run.models.config.sizes import (
    Sizes,
    check_heads,
    checked_sizes,
    gguf_sizes,
    gguf_windows,
    hf_sizes,
    sliding_windows,
)
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, mlp_or_experts

ROPES = {  # what the class assumes
    "full_attention": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
PATTERN = 4  # the first of four layers sees all tokens
BASES: dict[str, Any] = {"base": 5e5, "local_base": 1e4}
NAMES = MoeNames(
    correction=("mlp.gate.e_score_correction_bias", "mlp.experts.e_score_correction_bias"),
    shared="mlp.shared_experts",
)
GATES = {True: True, "per-head": True, "per_head": True, "per-element": False, "per_element": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class LagunaSizes(Sizes):
    """Sizes of a Laguna; `rope` is that of the layers that see all tokens."""

    rope_local: RopeSpec
    gate_heads: bool  # whether a gate is one number for a head, else one for each of its values


def config_from_gguf(meta: Fields, vocab: int) -> LagunaSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    head = sizes["head_dim"]
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), lambda i: i % PATTERN != 0)
    width = check_width(meta.integer("rope.dimension_count_swa", 2, MAX_WIDTH, head), head)
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, BASES["local_base"])
    mixture = gguf_shared_mixture(meta, sizes, SIGMOID)
    local = RopeSpec(base=base, width=width, adjacent=False)
    return LagunaSizes(**sizes, mixture=mixture, rope_local=local, gate_heads=True)


def config_from_hf(config: Fields) -> LagunaSizes:
    """Read config.json of a LagunaForCausalLM."""
    config.require("hidden_act", ("silu",), "silu")
    config.refuse("attention_bias", "a bias on attention")
    config.refuse("moe_apply_router_weight_on_input", "weights of experts that multiply what they read")
    if config.number("moe_router_logit_softcapping", 0.0, MAX_SCALE, 0.0):
        raise UnsupportedModel(
            f"{config.name('moe_router_logit_softcapping')} is not 0: a cap on routers' logits"
        )
    if config.get("rope_parameters") is None:
        config = Fields({**config.values, "rope_parameters": ROPES})
    sizes = hf_sizes(config, head_dim=128)
    layers = len(sizes["heads"])
    heads = config.each("num_attention_heads_per_layer", layers, 1, MAX_HEADS, sizes["heads"])
    check_heads(config.name("num_key_value_heads"), heads, sizes["kv_heads"])
    sizes = checked_sizes(**sizes | {"heads": heads})
    ropes = hf_layer_ropes(config, head_dim=sizes["head_dim"], context=sizes["context"], **BASES)
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 512)
    scale = config.number("moe_routed_scaling_factor", 1e-6, MAX_SCALE, 1.0)
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        shared=config.integer("shared_expert_intermediate_size", 1, MAX_WIDTH, 512),
        routing=replace(SIGMOID, scale=scale),
        sparse=listed_sparse(config.without("first_k_dense_replace"), layers, 1),
    )
    return LagunaSizes(
        **sizes,
        rope=ropes[0],
        rope_local=ropes[1],
        windows=sliding_windows(config, layers, window, lambda i: False),
        mixture=mixture,
        gate_heads=_gates(config),
    )


def _gates(config: Fields) -> bool:
    """Say whether a gate is one number for a head."""
    stated: Any = config.get("gating")
    stated = True if stated is None else stated
    if not isinstance(stated, bool | str) or stated not in GATES:
        raise UnsupportedModel(f"gating is {str(stated)[:60]!r}; supported: true, per-head, per-element")
    return GATES[stated]


def layer(cfg: LagunaSizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(
        cfg,
        i,
        rope=cfg.rope_local if cfg.windows[i] else cfg.rope,
        qk_norm="head",
        gate="g_proj",
        gate_heads=cfg.gate_heads,
        gate_act="softplus",
    )
    return attention, mlp_or_experts(cfg, i, NAMES)


FAMILY = Family(
    gguf_architecture="laguna",
    hf_classes=("LagunaForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    ends=DecoderEnds.of,
)
