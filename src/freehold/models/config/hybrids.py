"""The sizes of a decoder that mixes by gated DeltaNet in most layers and by attention in the others.

Knows the keys that say which layer does which; knows no tensor and no arithmetic.
Path: families.<family>.config_from_* -> gguf_hybrid or hf_hybrid -> HybridSizes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats.fields import MAX_LAYERS, Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.parts.deltanet import DeltaSizes, gguf_delta, hf_delta

INTERVAL = 4  # of layers, one attends


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridSizes(Sizes):
    """A decoder's sizes, and its recurrent layers'."""

    delta: DeltaSizes
    recurrent: tuple[bool, ...]  # for each layer, whether it is a DeltaNet
    tiled: bool = False  # the file's order of value heads: see DeltaNet


def gguf_hybrid(meta: Fields, vocab: int) -> dict[str, Any]:
    """Read a GGUF's keys as arguments for HybridSizes."""
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sections = meta.get("rope.dimension_sections")
    if sections is not None:
        check_sections(meta, "rope.dimension_sections", sections, sizes["rope"].width)
    return sizes | {"delta": gguf_delta(meta), "recurrent": _gguf_layers(meta, len(sizes["heads"]))}


def _gguf_layers(meta: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers are recurrent; a file lists its drafts' layers too, which attend."""
    listed = meta.get("attention.recurrent_layers")
    if listed is None:
        interval = meta.integer("full_attention_interval", 1, MAX_LAYERS, INTERVAL)
        return tuple((i + 1) % interval != 0 for i in range(layers))
    values = listed.tolist() if isinstance(listed, np.ndarray) else listed
    flags = values if isinstance(values, list) else []
    if len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        name = meta.name("attention.recurrent_layers")
        raise BadModelFile(f"{name} is {str(values)[:60]}; expected true or false for each layer")
    return tuple(bool(flag) for flag in flags[:layers])


def hf_hybrid(config: Fields, linear: dict[str, int] | None = None, **assumed: Any) -> dict[str, Any]:
    """Read a config.json as arguments for HybridSizes; the keywords are what the family's class assumes."""
    config.refuse("attention_bias", "a bias on attention")
    config.require("hidden_act", ("silu",), "silu")
    sizes = hf_decoder(config, **assumed)
    rope = config.section("rope_parameters") or config.section("rope_scaling")
    sections = rope.get("mrope_section") if rope else None
    if rope and sections is not None:
        check_sections(rope, "mrope_section", sections, sizes["rope"].width)
    layers = _hf_layers(config, len(sizes["heads"]))
    return sizes | {"delta": hf_delta(config, **linear or {}), "recurrent": layers}


def _hf_layers(config: Fields, layers: int) -> tuple[bool, ...]:
    if (stated := recurrent_types(config, layers)) is not None:
        return stated
    interval = config.integer("full_attention_interval", 1, MAX_LAYERS, INTERVAL)
    return tuple((i + 1) % interval != 0 for i in range(layers))


def recurrent_types(config: Fields, layers: int) -> tuple[bool, ...] | None:
    """Say which layers are recurrent by a config.json's `layer_types`, None where it has none."""
    kinds = config.texts("layer_types", layers)
    for kind in kinds or ():
        if kind not in ("linear_attention", "full_attention"):
            raise UnsupportedModel(f"layer_types names {kind!r}; supported: linear_attention, full_attention")
    return None if kinds is None else tuple(kind == "linear_attention" for kind in kinds)


def check_sections(fields: Fields, key: str, sections: object, width: int) -> None:
    """Raise unless the sections of time, height and width cover what turns; for text all are the position."""
    counts = sections.tolist() if isinstance(sections, np.ndarray) else sections
    if not isinstance(counts, list) or any(type(n) is not int for n in counts):
        raise BadModelFile(f"{fields.name(key)} is {str(sections)[:60]}; expected a list of numbers of pairs")
    if 2 * sum(counts) != width:
        raise BadModelFile(f"{fields.name(key)} is {str(counts)[:60]}; expected {width // 2} pairs together")
