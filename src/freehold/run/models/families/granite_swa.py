"""Granite with windows (Swash): Granite's block, of which three layers of four slide, and every head has a sink.

A config.json states the base of each layer's rope, where 0 is none. A GGUF states which layers turn, and one base for
them: the converter writes neither bases that differ nor layers without positions that only the bases tell.
Source: transformers 5.24, models/granite_swa.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.rope import RopeSpec, hf_ropes_by_base
from freehold.run.models.config.sizes import gguf_flags, gguf_sizes, gguf_windows, hf_decoder, sliding_windows
from freehold.run.models.families.granite import GraniteSizes, ends, gguf_factors, hf_factors
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, GatedMlp

PATTERN = 4  # the first of four layers has full attention
WINDOW = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SwashSizes(GraniteSizes):
    """Sizes of a Granite with windows, and each layer's rope."""

    ropes: tuple[RopeSpec | None, ...]


def config_from_gguf(meta: Fields, vocab: int) -> SwashSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    layers = len(sizes["heads"])
    sizes["windows"] = gguf_windows(meta, layers, _slides)
    turns = gguf_flags(meta, "attention.rope_pattern", layers) or (True,) * layers
    ropes = tuple(sizes["rope"] if turn else None for turn in turns)
    return SwashSizes(**sizes, **gguf_factors(meta), ropes=ropes)


def config_from_hf(config: Fields) -> SwashSizes:
    config.refuse("attention_bias", "a bias on attention")
    config.refuse("mlp_bias", "a bias on the MLP")
    sizes = hf_decoder(config, _windows, tied=True, eps=1e-5)
    return SwashSizes(
        **sizes, **hf_factors(config), ropes=hf_ropes_by_base(config, sizes["rope"], len(sizes["heads"]))
    )


def _slides(layer: int) -> bool:
    return layer % PATTERN != 0


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    return sliding_windows(config, layers, config.integer("sliding_window", 1, MAX_CONTEXT, WINDOW), _slides)


def layer(cfg: SwashSizes, i: int) -> tuple[LayerPart, ...]:
    attention = Attention.of(
        cfg, i, rope=cfg.ropes[i], sinks=True, gguf_pairs=True, scale=cfg.scale, residual=cfg.residual
    )
    return attention, GatedMlp.of(cfg, i, residual=cfg.residual)


FAMILY = Family(
    gguf_architecture="granite_swa",
    hf_classes=("GraniteSWAForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=ends,
)
