"""Muse Glimmer: a gated attention whose queries and keys are normalised without weights, between norms of each half.

    x = rms(embedding);  q = 3.87 rms(q), k = rms(k), then rope;  out = o(attention * sigmoid(g n))

Three sliding layers with a rope come before each full one without, counted from the last layer; norms after a half have
an epsilon of their own. A GGUF says the factor of queries as the weight of a norm, lays q and k in adjacent pairs, and
does not state the second epsilon, which is the class's. The tower of pictures is left out.
Source: transformers 5.24, models/muse_glimmer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.rope import hf_ropes_by_base
from freehold.run.models.config.sizes import (
    MAX_EPS,
    MIN_EPS,
    Sizes,
    gguf_sizes,
    gguf_windows,
    hf_decoder,
    sliding_windows,
)
from freehold.run.models.family import Buffer, Family, LayerPart, Ops, Values
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp, NormForm

AROUND_ZERO = NormForm(offset=1.0)
PATTERN = 4  # every fourth layer, counted from the last, has full attention
POST_EPS, QUERIES, LOGITS, CAP = 1e-8, 3.87, 0.19611613513818404, 20.0  # what the class assumes
MAX_FACTOR = 1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class GlimmerSizes(Sizes):
    """Sizes of a Muse Glimmer, and its factors."""

    post_eps: float
    queries: float  # factor of normalised queries; 0: a file's weights have it
    logits: float
    cap: float  # of logits


def config_from_gguf(meta: Fields, vocab: int) -> GlimmerSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    sizes["windows"] = gguf_windows(meta, len(sizes["heads"]), _slides(len(sizes["heads"])))
    return GlimmerSizes(
        **sizes,
        post_eps=POST_EPS,
        queries=0.0,
        logits=meta.number("logit_scale", 1e-6, MAX_FACTOR),
        cap=meta.number("final_logit_softcapping", 1e-3, MAX_FACTOR),
    )


def config_from_hf(config: Fields) -> GlimmerSizes:
    config.require("hidden_activation", ("silu",), "silu")
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_decoder(config, _windows, eps=1e-5, head_dim=128)
    _check_ropes(config, sizes)
    return GlimmerSizes(
        **sizes,
        post_eps=config.number("post_norm_eps", MIN_EPS, MAX_EPS, POST_EPS),
        queries=config.number("qk_scale_factor", 1e-3, MAX_FACTOR, QUERIES),
        logits=config.number("output_multiplier", 1e-6, MAX_FACTOR, LOGITS),
        cap=config.number("final_logit_softcapping", 1e-3, MAX_FACTOR, CAP),
    )


def _slides(layers: int) -> Callable[[int], bool]:
    return lambda i: (layers - 1 - i) % PATTERN != 0


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", 1, MAX_CONTEXT, 2048)
    return sliding_windows(config, layers, window, _slides(layers))


def _check_ropes(config: Fields, sizes: dict[str, Any]) -> None:
    """Raise unless the layers that turn by position, where a file lists them, are those that slide."""
    windows = sizes["windows"]
    ropes = hf_ropes_by_base(config, sizes["rope"], len(windows))
    listed = config.get("layer_rope_theta") is not None
    if listed and [rope is not None for rope in ropes] != [bool(window) for window in windows]:
        config.refuse("layer_rope_theta", "a rope on full layers, or sliding layers without one")


def layer(cfg: GlimmerSizes, i: int) -> tuple[LayerPart, ...]:
    norms = {"norm": AROUND_ZERO, "post_eps": cfg.post_eps}
    attention = Attention.of(
        cfg,
        i,
        rope=cfg.rope if cfg.windows[i] else None,
        qk_norm="bare" if cfg.queries else "head",
        scale=(cfg.queries or 1.0) * cfg.head_dim**-0.5,
        post_norm="post_attention_layernorm",
        gate="gate_proj",
        gguf_pairs=True,
        **norms,
    )
    mlp = GatedMlp.of(
        cfg, i, norm_name="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm", **norms
    )
    return attention, mlp


@dataclass(frozen=True, slots=True, kw_only=True)
class NormedEnds(DecoderEnds):
    """A decoder's ends whose embeddings are normalised, without weights."""

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Look the step's tokens up, and normalise them."""
        embedded = super(NormedEnds, self).begin(ops, w)
        return ops.norm(embedded, np.ones(self.hidden, np.float32), self.eps)


FAMILY = Family(
    gguf_architecture="muse-glimmer",
    hf_classes=("MuseGlimmerForCausalLM",),
    wrappers=("MuseGlimmerForConditionalGeneration",),
    model_types=("muse_glimmer", "muse_glimmer_text"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=lambda cfg: NormedEnds.of(cfg, logit_scale=cfg.logits, softcap=cfg.cap),
)
