"""MiMo V2: five layers of six slide, with sinks and twice the key heads; values of a head are narrower than keys.

A third of each head turns, by a base of the layer's kind. What attention gives is multiplied by a factor. Experts are
chosen by sigmoids with a correction, in all layers but the first. `sliding_window_size` counts the tokens before a
token's own, as transformers reads it; `sliding_window`, and a GGUF's window, count that too.
Sources: transformers 5.24, models/mimo_v2_flash; llama.cpp's loader and converter, read 2026-12.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import (
    MAX_SCALE,
    SIGMOID,
    gguf_mixture,
    hf_groups,
    hf_mixture,
    listed_sparse,
)
from freehold.run.models.config.rope import MAX_BASE, RopeSpec, hf_layer_ropes
from freehold.run.models.config.sizes import (
    Sizes,
    check_heads,
    check_width,
    gguf_layers,
    gguf_sizes,
    gguf_windows,
    hf_sizes,
    sliding_windows,
)
from freehold.run.models.family import Cut, Family, LayerPart, TensorSpec
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, apart, either, fused, mlp_or_experts

PATTERN = 6  # of these the last has full attention, and so has the very first layer
BASES: dict[str, Any] = {"base": 5e6, "local_base": 1e4}
SHARE = 0.334  # of a head that turns
FACTOR = 0.707  # of what attention gives
GGUF_LISTS = ("attention.head_count_kv", "attention.sliding_window_pattern")
NAMES = MoeNames(
    experts=either(apart("mlp.experts.{e}"), fused("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MimoSizes(Sizes):
    """Sizes of a MiMo V2; `rope` is that of the layers that see all tokens."""

    rope_local: RopeSpec
    value_dim: int
    factor: float  # of what attention gives

    def __post_init__(self) -> None:
        for heads in {*self.heads}:
            check_width("attention output", heads * self.value_dim)


def config_from_gguf(meta: Fields, vocab: int) -> MimoSizes:
    layers = gguf_layers(meta)
    meta = meta.cut(GGUF_LISTS, meta.integer("block_count", 1, MAX_LAYERS), layers)
    sizes = gguf_sizes(meta.without("attention.value_length"), vocab, adjacent=False)
    sizes["windows"] = gguf_windows(meta, layers, _slides)
    base = meta.number("rope.freq_base_swa", 1.001, MAX_BASE, sizes["rope"].base)
    dense = meta.integer("leading_dense_block_count", 0, layers, 1)
    sparse = tuple(i >= dense for i in range(layers))
    return MimoSizes(
        **sizes,
        mixture=gguf_mixture(meta, sizes, routing=SIGMOID, sparse=sparse),
        rope_local=replace(sizes["rope"], base=base),
        value_dim=meta.integer("attention.value_length", 1, MAX_WIDTH, sizes["head_dim"]),
        factor=meta.number("attention.value_scale", 1e-6, MAX_SCALE, 1.0),
    )


def config_from_hf(config: Fields) -> MimoSizes:
    """Read config.json of a MiMoV2FlashForCausalLM, as its makers or transformers write it."""
    config.require("hidden_act", ("silu",), "silu")
    config.require("scoring_func", ("sigmoid",), "sigmoid")
    config.refuse("attention_bias", "a bias on attention")
    config.refuse("n_shared_experts", "a shared expert")
    config.refuse("add_full_attention_sink_bias", "attention sinks in full-attention layers")
    config = _named(config)
    sizes = hf_sizes(config, eps=1e-5, head_dim=192)
    layers = len(sizes["heads"])
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 129)
    if config.get("sliding_window_size") is not None:
        window = config.integer("sliding_window_size", 1, MAX_CONTEXT) + 1
    windows = sliding_windows(config, layers, window, _slides)
    sizes["kv_heads"] = _kv_heads(config, sizes, windows)
    value = config.integer("v_head_dim", 1, MAX_WIDTH, 128)
    options: dict[str, Any] = {"head_dim": sizes["head_dim"], "context": sizes["context"], **BASES}
    ropes = hf_layer_ropes(config, **options)
    mixture = hf_mixture(
        config,
        "moe_intermediate_size",
        layers,
        routing=hf_groups(config, SIGMOID),
        sparse=_sparse(config, layers),
    )
    return MimoSizes(
        **sizes,
        rope=ropes[0],
        rope_local=ropes[1],
        windows=windows,
        mixture=mixture,
        value_dim=value,
        factor=config.number("attention_value_scale", 1e-6, MAX_SCALE, FACTOR),
    )


def _slides(layer: int) -> bool:
    return layer > 0 and (layer + 1) % PATTERN != 0


def _named(config: Fields) -> Fields:
    """Return a config.json with the keys that transformers has, for those that makers' files have instead."""
    values = dict(config.values)
    if values.get("rms_norm_eps") is None and values.get("layernorm_epsilon") is not None:
        values["rms_norm_eps"] = values["layernorm_epsilon"]
    pattern = values.get("hybrid_layer_pattern")
    if values.get("layer_types") is None and isinstance(pattern, list):
        values["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in pattern]
    if values.get("routed_scaling_factor") is None:
        values["routed_scaling_factor"] = 1.0
    ropes = values.get("rope_parameters")
    if not isinstance(ropes, dict) or "full_attention" not in ropes:
        share = config.number("partial_rotary_factor", 1e-3, 1.0, SHARE)
        bases = (
            config.number("rope_theta", 1.001, MAX_BASE, BASES["base"]),
            config.number("swa_rope_theta", 1.001, MAX_BASE, BASES["local_base"]),
        )
        kinds = zip(("full_attention", "sliding_attention"), bases, strict=True)
        values["rope_parameters"] = {
            kind: {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}
            for kind, base in kinds
        }
    return Fields(values)


def _kv_heads(config: Fields, sizes: dict[str, Any], windows: tuple[int, ...]) -> tuple[int, ...]:
    """Give each layer its key heads; sliding layers have twice those of others, and the same query heads and widths."""
    own = sizes["kv_heads"][0]
    same = {
        "swa_num_attention_heads": sizes["heads"][0],
        "swa_head_dim": sizes["head_dim"],
        "swa_v_head_dim": config.integer("v_head_dim", 1, MAX_WIDTH, 128),
    }
    for key, value in same.items():
        if config.integer(key, 1, MAX_WIDTH, value) != value:
            raise UnsupportedModel(f"{key} is {config.get(key)}, and {value} in layers that see all tokens")
    sliding = config.integer("swa_num_key_value_heads", 1, MAX_HEADS, 2 * own)
    kv_heads = tuple(sliding if window else own for window in windows)
    check_heads("swa_num_key_value_heads", sizes["heads"], kv_heads)
    return kv_heads


def _sparse(config: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have experts: by kinds, by makers' list of 0 and 1, or all but the first."""
    flags = config.get("moe_layer_freq")
    if not isinstance(flags, list) or config.get("mlp_layer_types") is not None:
        return listed_sparse(config, layers, 1)
    if len(flags) != layers or any(flag not in (0, 1) for flag in flags):
        raise BadModelFile(f"moe_layer_freq is {str(flags)[:60]}; expected {layers} of 0 and 1")
    return tuple(map(bool, flags))


@dataclass(frozen=True, slots=True, kw_only=True)
class MimoAttention(Attention):
    """Attention whose sinks safetensors name in two ways, and whose q, k and v are one matrix in some GGUFs."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare all places of each weight."""
        specs = super(MimoAttention, self).tensors()
        q, k, v = self.q_width, self.kv_width, self.value_width
        rows = {"q": range(q), "k": range(q, q + k), "v": range(q + k, q + k + v)}
        for key, own in rows.items():
            whole = Cut("attn_qkv.weight", (q + k + v, self.hidden), rows=own)
            specs[key] = replace(specs[key], gguf=(*specs[key].gguf, whole))
        if self.sinks:
            names = ("self_attn.attention_sink_bias", "self_attn.sinks")
            specs["sinks"] = replace(specs["sinks"], hf=names)
        return specs


def layer(cfg: MimoSizes, i: int) -> tuple[LayerPart, ...]:
    slides = bool(cfg.windows[i])
    attention = MimoAttention.of(
        cfg,
        i,
        rope=cfg.rope_local if slides else cfg.rope,
        sinks=slides,
        value_dim=cfg.value_dim,
        residual=cfg.factor,
    )
    return attention, mlp_or_experts(cfg, i, NAMES)


FAMILY = Family(
    gguf_architecture="mimo2",
    hf_classes=("MiMoV2FlashForCausalLM",),
    model_types=("mimo_v2_flash", "mimo_v2"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    ends=DecoderEnds.of,
    left_out=((r"model\.mtp\.", "layers that predict further tokens are left out"),),
)
