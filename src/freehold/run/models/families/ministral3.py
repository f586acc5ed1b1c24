"""Ministral 3 and Devstral 2: a Llama block stretched by YaRN, whose queries grow beyond the original context.

    q *= 1 + beta * ln(1 + floor(position / original))    after it has turned

YaRN's attention factor is a ratio of two temperatures, 1 in the published files. A GGUF keeps the lower one alone
(`yarn_log_multiplier`); the upper is 1 in all of them.
Source: Mistral's Ministral 3 and Devstral 2 files of December 2025; the temperature is Llama 4's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.rope import RopeSpec, state_rope, yarn_mscale
from freehold.run.models.config.sizes import Sizes, every_window, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp


@dataclass(frozen=True, slots=True, kw_only=True)
class MinistralSizes(Sizes):
    """Sizes of a Ministral 3, and its temperature."""

    beta: float  # 0: queries keep their length
    original: int


def config_from_gguf(meta: Fields, vocab: int) -> MinistralSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    rope: RopeSpec = sizes["rope"]
    lower = meta.number("rope.scaling.yarn_log_multiplier", 0.0, 1e3, 0.0)
    if rope.scaling == "yarn" and lower:
        factor = yarn_mscale(rope.factor) / yarn_mscale(rope.factor, lower)
        sizes["rope"] = replace(rope, attention_factor=factor)
    beta = meta.number("attention.temperature_scale", 0.0, 1e3, 0.0)
    original = meta.integer("attention.temperature_length", 1, MAX_CONTEXT, rope.original or sizes["context"])
    return MinistralSizes(**sizes, beta=beta, original=original)


def config_from_hf(config: Fields) -> MinistralSizes:
    state_rope(config)
    sizes = hf_decoder(config, every_window, base=1e6, eps=1e-5, head_dim=128)
    rope = config.section("rope_parameters") or config.section("rope_scaling") or Fields({})
    beta = rope.number("llama_4_scaling_beta", 0.0, 1e3, 0.0)
    return MinistralSizes(**sizes, beta=beta, original=sizes["rope"].original or sizes["context"])


def layer(cfg: MinistralSizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(cfg, i, gguf_pairs=True, beta=cfg.beta, original=cfg.original)
    return attention, GatedMlp.of(cfg, i)


FAMILY = Family(
    gguf_architecture="mistral3",
    hf_classes=("Ministral3ForCausalLM",),
    wrappers=("Mistral3ForConditionalGeneration",),
    model_types=("ministral3",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
    towers=("pixtral",),
)
