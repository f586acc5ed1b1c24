"""gpt-oss: experts with biases and clamped gates, attention with a sink for each head, every second layer a window.

The router's softmax is over the chosen experts alone. YaRN's ramp is not rounded to whole pairs, which a GGUF does not
state. Published safetensors hold experts as MXFP4; others as floats, transposed, gate and up in turns.
Source: arXiv 2508.10925 (the model card).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.rope import state_rope
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder, sliding_windows
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds
from freehold.run.models.parts.moe import (
    Moe,
    MoeNames,
    either,
    interleaved_biases,
    interleaved_blocks,
    transposed,
)

ROUTING = Routing(bias=True)
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
NAMES = MoeNames(
    experts=either(
        interleaved_blocks(f"{GATE_UP}_blocks", f"{DOWN}_blocks"),
        transposed(GATE_UP, DOWN, interleaved=True),
    ),
    biases=interleaved_biases(f"{GATE_UP}_bias", f"{DOWN}_bias"),
    router="mlp.router.weight",
    router_bias="mlp.router.bias",
    gguf_norm="post_attention_norm",
)
LIMIT, ALPHA = 7.0, 1.702
BASE = 150_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOssSizes(Sizes):
    """Sizes of a gpt-oss, and the limits of its gates."""

    limit: float = LIMIT
    alpha: float = ALPHA


def config_from_gguf(meta: Fields, vocab: int) -> GptOssSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sizes["rope"] = replace(sizes["rope"], truncate=False)
    sizes["windows"] = tuple(0 if i % 2 else w for i, w in enumerate(sizes["windows"]))
    return GptOssSizes(**sizes, mixture=gguf_mixture(meta, sizes, routing=ROUTING))


def config_from_hf(config: Fields) -> GptOssSizes:
    if not config.flag("attention_bias", True):
        raise UnsupportedModel("attention_bias is false; only true is supported")
    state_rope(config)
    sizes = hf_decoder(config, _windows, base=BASE, eps=1e-5)
    return GptOssSizes(
        **sizes,
        mixture=hf_mixture(config, "intermediate_size", len(sizes["heads"]), routing=ROUTING),
        limit=config.number("swiglu_limit", 1e-3, 1e6, LIMIT),
        alpha=config.number("swiglu_alpha", 1e-3, 1e3, ALPHA),
    )


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    """Layers 0, 2, 4 ... slide, unless the file says which do."""
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 128)
    return sliding_windows(config, layers, window, lambda i: i % 2 == 0)


def layer(cfg: GptOssSizes, i: int) -> tuple[LayerPart, ...]:
    experts: dict[str, Any] = {"act": "clamped", "limit": cfg.limit, "alpha": cfg.alpha, "biased": True}
    return Attention.of(cfg, i, bias="all", sinks=True), Moe.of(cfg, NAMES, **experts)


FAMILY = Family(
    gguf_architecture="gpt-oss",
    hf_classes=("GptOssForCausalLM",),
    wrappers=("InternVLForConditionalGeneration", "InternVLChatModel"),
    model_types=("gpt_oss",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layer=layer,
    ends=DecoderEnds.of,
    towers=("internvl",),
)
