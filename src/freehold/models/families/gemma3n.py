"""Gemma 3n, text: E2B and E4B, with four residual streams, embeddings of each layer and gates that are cut.

The last layers read the keys and values of the last layer of their kind that has some. Norms are plain in both file
formats. A GGUF states how many deviations above their mean gates are cut, and minus infinity where none is; config.json
the share that is cut. llama.cpp cuts the first ten layers by a constant, and divides by one gate less.
Sources: Google's Gemma 3n files, transformers' Gemma3nTextModel and llama.cpp's converter, read 2026-11.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.models.config.rope import RopeSpec, hf_layer_ropes
from freehold.models.config.sizes import (
    check_width,
    gguf_sizes,
    gguf_windows,
    hf_sizes,
    sliding_windows,
)
from freehold.models.families.gemma4 import SharingSizes, check_sources, left_out, source
from freehold.models.family import Family, LayerPart
from freehold.models.parts.altup import AltUpEnds, AltUpLayer
from freehold.models.parts.gemma4 import SharingAttention
from freehold.models.parts.mlp import GatedMlp

LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0
WINDOW, PATTERN, SHARED = 512, 5, 15
STREAMS, MAX_STREAMS, RANK, INPUTS, INPUT_ROWS = 4, 8, 64, 256, 262_144
SOFTCAP = 30.0
SPARSE_LAYERS, SPARSITY = 10, 0.95  # where config.json does not say
RARE, FAR = 1e-6, 6.0  # a share that float32 still tells from none, and deviations that few values exceed
ACT = "gelu_pytorch_tanh"


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaSizes3n(SharingSizes):
    """Sizes of Gemma 3n."""

    input_rows: int = 0  # tokens that have embeddings of layers; 0: all
    streams: int
    active: int  # the stream that layers compute
    rank: int  # of the side path
    above: tuple[float | None, ...]  # of each layer: see GatedMlp


def config_from_gguf(meta: Fields, vocab: int) -> GemmaSizes3n:
    """Read the keys under `gemma3n.`; no key has the side path's rank, which is one in all models."""
    sizes = gguf_sizes(meta, vocab, adjacent=False, base=GLOBAL_BASE)
    layers, head_dim = len(sizes["heads"]), sizes["head_dim"]
    meta.integer("attention.sliding_window", 1, MAX_CONTEXT)
    sizes["windows"] = gguf_windows(meta, layers, lambda i: (i + 1) % PATTERN != 0)
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, LOCAL_BASE)
    streams = meta.integer("altup.num_inputs", 2, MAX_STREAMS)
    key = "activation_sparsity_scale"
    scales = _each(meta, key, layers, lambda v: v == -math.inf or abs(v) <= FAR)
    if scales is None:
        raise BadModelFile(f"{meta.name(key)} is missing; expected a number for each layer")
    return _checked(
        GemmaSizes3n(
            **sizes,
            rope_local=RopeSpec(base=base, width=head_dim, adjacent=False, divisible=False),
            softcap=meta.number("final_logit_softcapping", 0.0, 1e6, SOFTCAP),
            shared=meta.integer("attention.shared_kv_layers", 0, MAX_LAYERS),
            inputs=meta.integer("embedding_length_per_layer_input", 1, MAX_WIDTH),
            streams=streams,
            active=meta.integer("altup.active_idx", 0, streams - 1),
            rank=RANK,
            above=tuple(None if v == -math.inf else v for v in scales),
        )
    )


def config_from_hf(config: Fields) -> GemmaSizes3n:
    """Read config.json of a Gemma3nForCausalLM, or the `text_config` of a Gemma3nForConditionalGeneration."""
    config.require("hidden_activation", (ACT,), ACT)
    config.refuse("use_bidirectional_attention", "attention to later tokens")
    config.refuse("attention_bias", "a bias on attention")
    if not config.flag("altup_correct_scale", True):
        raise UnsupportedModel("altup_correct_scale is false; only a scaled correction is supported")
    sizes = hf_sizes(
        config,
        tied=True,
        vocab_size=262_400,
        hidden_size=2048,
        intermediate_size=16_384,
        num_hidden_layers=35,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        max_position_embeddings=32_768,
    )
    layers = len(sizes["heads"])
    bases = {"base": GLOBAL_BASE, "local_base": LOCAL_BASE}
    rope, rope_local = hf_layer_ropes(config, head_dim=sizes["head_dim"], context=sizes["context"], **bases)
    window = config.integer("sliding_window", 1, MAX_CONTEXT, WINDOW)
    streams = config.integer("altup_num_inputs", 2, MAX_STREAMS, STREAMS)
    rows = config.integer("vocab_size_per_layer_input", 1, MAX_VOCAB, INPUT_ROWS)
    return _checked(
        GemmaSizes3n(
            **sizes,
            rope=rope,
            rope_local=rope_local,
            windows=sliding_windows(config, layers, window, lambda i: (i + 1) % PATTERN != 0),
            softcap=config.number("final_logit_softcapping", 0.0, 1e6, SOFTCAP),
            shared=config.integer("num_kv_shared_layers", 0, MAX_LAYERS, SHARED),
            inputs=config.integer("hidden_size_per_layer_input", 1, MAX_WIDTH, INPUTS),
            input_rows=0 if rows == sizes["vocab"] else rows,
            streams=streams,
            active=config.integer("altup_active_idx", 0, streams - 1, 0),
            rank=config.integer("laurel_rank", 1, MAX_WIDTH, RANK),
            above=_deviations(config, layers),
        )
    )


def _deviations(config: Fields, layers: int) -> tuple[float | None, ...]:
    """Turn the share of gates that each layer cuts into deviations: those of a normal distribution."""
    shares = _each(config, "activation_sparsity_pattern", layers, lambda v: v == 0 or RARE <= v <= 1 - RARE)
    if shares is None:
        first = SPARSE_LAYERS if layers > SPARSE_LAYERS else 0
        shares = [SPARSITY] * first + [0.0] * (layers - first)
    return tuple(NormalDist().inv_cdf(share) if share else None for share in shares)


def _each(fields: Fields, key: str, layers: int, fits: Callable[[float], bool]) -> list[float] | None:
    """Read a number for each layer; None where the key is absent."""
    value = fields.get(key)
    if value is None:
        return None
    values: Any = value.tolist() if isinstance(value, np.ndarray) else value
    numbers = isinstance(values, Sequence) and all(type(v) in (int, float) for v in values)
    if not numbers or len(values) != layers or not all(map(fits, values)):
        raise BadModelFile(
            f"{fields.name(key)} is {str(values)[:60]}; expected a number for each of {layers} layers"
        )
    return [float(v) for v in values]


def _checked(cfg: GemmaSizes3n) -> GemmaSizes3n:
    """Return a config whose parts fit together."""
    check_width("hidden_size_per_layer_input", cfg.inputs)
    check_width("laurel_rank", cfg.rank)
    check_sources(cfg)
    return cfg


def layer(cfg: GemmaSizes3n, i: int) -> tuple[LayerPart, ...]:
    """Give a layer one part: it mixes streams before its attention and after its MLP."""
    attention = SharingAttention(
        hidden=cfg.hidden,
        heads=cfg.heads[i],
        kv_heads=cfg.kv_heads[i],
        head_dim=cfg.head_dim,
        eps=cfg.eps,
        rope=cfg.rope_local if cfg.windows[i] else cfg.rope,
        window=cfg.windows[i],
        source=source(cfg, i) if i >= cfg.layers - cfg.shared else None,
        twin=False,
    )
    names = {"norm_name": "pre_feedforward_layernorm", "post_norm": "post_feedforward_layernorm"}
    mlp = GatedMlp.of(cfg, i, act="gelu", above=cfg.above[i], **names)
    sizes = {"streams": cfg.streams, "active": cfg.active, "rank": cfg.rank, "width": cfg.inputs}
    return (AltUpLayer(attention=attention, mlp=mlp, **sizes),)


def ends(cfg: GemmaSizes3n) -> AltUpEnds:
    """Scale embeddings by sqrt(hidden), and embed tokens for each layer."""
    inputs = {"layers": cfg.layers, "width": cfg.inputs, "rows": cfg.input_rows}
    return AltUpEnds.of(cfg, scale=math.sqrt(cfg.hidden), softcap=cfg.softcap, streams=cfg.streams, **inputs)


FAMILY = Family(
    gguf_architecture="gemma3n",
    hf_classes=("Gemma3nForCausalLM",),
    wrappers=("Gemma3nForConditionalGeneration",),
    model_types=("gemma3n_text",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(AltUpLayer,),
    layer=layer,
    ends=ends,
    left_out_of=left_out,
)
