"""SmolLM3: a Llama block of which every fourth layer knows no positions.

A GGUF does not say which layers those are; all published files have every fourth.
Source: arXiv 2501.18795 (layers without rotation), Hugging Face's SmolLM3 page of 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.base.errors import BadModelFile
from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder, sliding_windows
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

INTERVAL = 4
BASE = 2_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SmolSizes(Sizes):
    """Sizes of a SmolLM3."""

    turns: tuple[bool, ...]  # for each layer, whether it rotates


def config_from_gguf(meta: Fields, vocab: int) -> SmolSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    return SmolSizes(**sizes, turns=_every(INTERVAL, len(sizes["heads"])))


def config_from_hf(config: Fields) -> SmolSizes:
    config.refuse("mlp_bias", "a bias on the MLP")
    sizes = hf_decoder(config, _windows, base=BASE, tied=True)
    return SmolSizes(**sizes, turns=_turns(config, len(sizes["heads"])))


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    """Only where `use_sliding_window` says so."""
    if not config.flag("use_sliding_window", False):
        return (0,) * layers
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0)
    turns = _turns(config, layers)
    return sliding_windows(config, layers, window, lambda i: not turns[i])


def _turns(config: Fields, layers: int) -> tuple[bool, ...]:
    """Read the list of layers (1: it rotates), or else the interval."""
    listed = config.get("no_rope_layers")
    if listed is None:
        return _every(config.integer("no_rope_layer_interval", 1, MAX_LAYERS, INTERVAL), layers)
    if not isinstance(listed, list) or len(listed) < layers or any(each not in (0, 1) for each in listed):
        raise BadModelFile(f"no_rope_layers is {str(listed)[:60]}; expected {layers} values of 0 or 1")
    return tuple(each == 1 for each in listed[:layers])


def _every(interval: int, layers: int) -> tuple[bool, ...]:
    return tuple((i + 1) % interval != 0 for i in range(layers))


def layer(cfg: SmolSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention, with a rope or without, and an MLP."""
    rope = cfg.rope if cfg.turns[i] else None
    return Attention.of(cfg, i, rope=rope, bias="any", gguf_pairs=True), GatedMlp.of(cfg, i)


FAMILY = Family(
    gguf_architecture="smollm3",
    hf_classes=("SmolLM3ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
