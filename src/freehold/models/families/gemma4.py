"""Gemma 4, text: E2B and E4B with embeddings of each layer, 31B, and 26B-A4B with experts beside the MLP.

Sliding layers have heads of one width and full ones of another; the full ones turn a quarter of their pairs, and in the
large models have no values of their own. In the small ones the last layers read the keys and values of the last layer
of their kind that has some. Norms are plain in both file formats.
Source: Google's Gemma 4 files, and transformers' Gemma4TextModel, read 2026-11.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.models.config.rope import RopeSpec, hf_rope_section
from freehold.models.config.sizes import (
    Sizes,
    check_heads,
    checked_sizes,
    gguf_sizes,
    gguf_windows,
    hf_sizes,
    sliding_windows,
)
from freehold.models.family import Family, LayerPart
from freehold.models.parts.gemma4 import ExpertsBeside, InputEnds, LayerInput, SharingAttention
from freehold.models.parts.mlp import GatedMlp

LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0
GLOBAL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": GLOBAL_BASE}
GLOBAL_WIDTH, WINDOW, PATTERN = 512, 512, 6
ACT = "gelu_pytorch_tanh"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingSizes(Sizes):
    """Sizes of decoders whose last layers read keys and values of earlier ones; `rope` is that of full layers."""

    rope_local: RopeSpec
    softcap: float  # of logits
    shared: int  # of the last layers, how many keep no keys and values
    inputs: int  # width of a layer's embedding; 0: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaSizes4(SharingSizes):
    """Sizes of Gemma 4; `head_dim` is that of full layers."""

    local_dim: int  # width of a head in sliding layers
    twins: bool  # whether full layers' values are their keys


def config_from_gguf(meta: Fields, vocab: int) -> GemmaSizes4:
    """Read the keys under `gemma4.`; no key says whether values are keys: models without inputs of layers have that."""
    sizes = gguf_sizes(meta, vocab, adjacent=False, base=GLOBAL_BASE)
    layers = len(sizes["heads"])
    sizes["windows"] = gguf_windows(meta, layers, lambda i: (i + 1) % PATTERN != 0)
    local_dim = meta.integer("attention.key_length_swa", 1, MAX_WIDTH, sizes["head_dim"])
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if meta.integer(key, 1, MAX_WIDTH, local_dim) != local_dim:
            raise UnsupportedModel(
                f"{meta.name(key)} differs from the width of sliding layers' heads, {local_dim}"
            )
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, LOCAL_BASE)
    inputs = meta.integer("embedding_length_per_layer_input", 0, MAX_WIDTH, 0)
    if meta.integer("expert_count", 0, MAX_WIDTH, 0):
        sizes["mixture"] = gguf_mixture(meta, sizes)
    return _checked(
        GemmaSizes4(
            **sizes,
            local_dim=local_dim,
            rope_local=RopeSpec(base=base, width=local_dim, adjacent=False, divisible=False),
            softcap=meta.number("final_logit_softcapping", 0.0, 1e6, 0.0),
            shared=meta.integer("attention.shared_kv_layers", 0, MAX_LAYERS, 0),
            inputs=inputs,
            twins=not inputs,
        )
    )


def config_from_hf(config: Fields) -> GemmaSizes4:
    """Read config.json of a Gemma4ForCausalLM, or the `text_config` of a Gemma4ForConditionalGeneration."""
    config.require("hidden_activation", (ACT,), ACT)
    config.refuse("use_bidirectional_attention", "attention to later tokens")
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_sizes(config, tied=True, head_dim=256, num_key_value_heads=4)
    layers, local_dim = len(sizes["heads"]), sizes["head_dim"]
    window = config.integer("sliding_window", 1, MAX_CONTEXT, WINDOW)
    windows = sliding_windows(config, layers, window, lambda i: (i + 1) % PATTERN != 0)
    inputs = config.integer("hidden_size_per_layer_input", 0, MAX_WIDTH, 256)
    if inputs and config.integer("vocab_size_per_layer_input", 1, 1 << 24, 262_144) != sizes["vocab"]:
        raise UnsupportedModel("vocab_size_per_layer_input differs from vocab_size, which is not supported")
    shared = config.integer("num_kv_shared_layers", 0, MAX_LAYERS, 0)
    wide = 2 if config.flag("use_double_wide_mlp", False) else 1
    first = layers - shared
    own = sizes["intermediate"]
    full = _full_layers(config, sizes, windows)
    mixture = (
        hf_mixture(config, "moe_intermediate_size", layers, chosen="top_k_experts")
        if config.flag("enable_moe_block", False)
        else None
    )
    sizes |= full | {
        "windows": windows,
        "intermediate": tuple(n * (wide if i >= first else 1) for i, n in enumerate(own)),
        "mixture": mixture,
    }
    ropes = config.section("rope_parameters") or Fields({})
    context = {"context": sizes["context"]}
    local = ropes.section("sliding_attention")
    turns = ropes.section("full_attention") or Fields(GLOBAL_ROPE)
    return _checked(
        GemmaSizes4(
            **checked_sizes(**sizes),
            rope=hf_rope_section(turns, head_dim=sizes["head_dim"], base=GLOBAL_BASE, **context),
            local_dim=local_dim,
            rope_local=hf_rope_section(local, head_dim=local_dim, base=LOCAL_BASE, **context),
            softcap=config.number("final_logit_softcapping", 0.0, 1e6, 0.0),
            shared=shared,
            inputs=inputs,
            twins=config.flag("attention_k_eq_v", False),
        )
    )


def _full_layers(config: Fields, sizes: dict[str, Any], windows: tuple[int, ...]) -> dict[str, Any]:
    """Read the head width of full layers and each layer's key heads: published keys, or transformers 5's of a layer."""
    each = config.section("per_layer_config")
    first = next((i for i, w in enumerate(windows) if not w), None)
    own = each.section(str(first)) if each is not None else config
    names = (
        ("head_dim", "num_key_value_heads")
        if each is not None
        else ("global_head_dim", "num_global_key_value_heads")
    )
    own = own or Fields({})
    if each is not None and any(
        each.get(str(i)) != each.get(str(first)) for i, w in enumerate(windows) if not w
    ):
        raise UnsupportedModel("per_layer_config differs among full layers, which is not supported")
    kv = (
        own.integer(names[1], 1, MAX_HEADS, sizes["kv_heads"][0])
        if config.flag("attention_k_eq_v", False)
        else 0
    )
    kv_heads = tuple(n if w or not kv else kv for n, w in zip(sizes["kv_heads"], windows, strict=True))
    check_heads(config.name(names[1]), sizes["heads"], kv_heads)
    return {
        "head_dim": own.integer(names[0], 1, MAX_WIDTH, GLOBAL_WIDTH),
        "kv_heads": kv_heads,
    }


def _checked(cfg: GemmaSizes4) -> GemmaSizes4:
    """Return a config that ends in full attention."""
    if cfg.windows[-1]:
        raise UnsupportedModel("the last layer slides; only full attention is supported there")
    check_sources(cfg)
    return cfg


def check_sources(cfg: SharingSizes) -> None:
    """Raise unless every sharing layer has a layer to read from."""
    first = cfg.layers - cfg.shared
    if first < 1 or any(source(cfg, i) is None for i in range(first, cfg.layers)):
        raise BadModelFile(f"{cfg.shared} layers share keys and values that no layer of their kind keeps")


def source(cfg: SharingSizes, layer: int) -> int | None:
    """Return the last layer of the same kind that keeps keys and values."""
    kind = bool(cfg.windows[layer])
    own = range(cfg.layers - cfg.shared)
    return next((i for i in reversed(own) if bool(cfg.windows[i]) is kind), None)


def layer(cfg: GemmaSizes4, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention, an MLP or experts beside one, and its own input."""
    slides = bool(cfg.windows[i])
    attention = SharingAttention(
        hidden=cfg.hidden,
        heads=cfg.heads[i],
        kv_heads=cfg.kv_heads[i],
        head_dim=cfg.local_dim if slides else cfg.head_dim,
        eps=cfg.eps,
        rope=cfg.rope_local if slides else cfg.rope,
        window=cfg.windows[i],
        source=source(cfg, i) if i >= cfg.layers - cfg.shared else None,
        twin=cfg.twins and not slides,
    )
    names = {"norm_name": "pre_feedforward_layernorm", "post_norm": "post_feedforward_layernorm"}
    mlp: LayerPart = GatedMlp.of(cfg, i, act="gelu", **names)
    if cfg.mixture is not None:
        assert isinstance(mlp, GatedMlp)
        mlp = ExpertsBeside(mlp=mlp, mixture=cfg.mixture)
    return attention, mlp, LayerInput(hidden=cfg.hidden, width=cfg.inputs, eps=cfg.eps)


def ends(cfg: GemmaSizes4) -> InputEnds:
    """Scale embeddings by sqrt(hidden), and embed tokens for each layer."""
    scale = math.sqrt(cfg.hidden)
    return InputEnds.of(cfg, scale=scale, softcap=cfg.softcap, layers=cfg.layers, width=cfg.inputs)


def left_out(cfg: SharingSizes) -> tuple[tuple[str, str], ...]:
    """Published files hold projections of keys and values that sharing layers have no use for."""
    if not cfg.shared:
        return ()
    sharing = "|".join(str(i) for i in range(cfg.layers - cfg.shared, cfg.layers))
    unused = r"(self_attn\.(k_proj|v_proj|k_norm|v_norm)|attn_(k|v|k_norm))\."
    note = "keys and values of layers that read another layer's are left out, as the model does"
    return ((rf"(model\.layers|blk)\.({sharing})\.{unused}", note),)


def _mixes(config: Fields) -> bool:
    return config.flag("enable_moe_block", False)


DENSE = Family(
    gguf_architecture="gemma4",
    hf_classes=("Gemma4ForCausalLM",),
    hf_when=lambda config: not _mixes(config),
    wrappers=("Gemma4ForConditionalGeneration",),
    model_types=("gemma4_text",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(SharingAttention, GatedMlp, LayerInput),
    layer=layer,
    ends=ends,
    left_out_of=left_out,
)
FAMILIES = (DENSE, replace(DENSE, hf_when=_mixes, parts=(SharingAttention, ExpertsBeside, LayerInput)))
