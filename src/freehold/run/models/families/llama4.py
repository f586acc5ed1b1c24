"""Llama 4's text: chunked attention with rope and bare norms, full attention without positions on every fourth layer.

A token is sent to one expert, whose input its sigmoid multiplies, and to a shared one. On layers without rope queries
grow with their position. A GGUF states neither chunk, nor which layers have no rope, nor how queries grow: the released
models have 8192, every fourth and 0.1, and all but the one of 128 experts normalise queries and keys.
Source: Meta's models code and cards of April 2025.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import BadModelFile
from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import gguf_mixture, gguf_sparse, hf_mixture
from freehold.run.models.config.sizes import Routing, Sizes, check_width, exact_up_to, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, transposed

ROUTING = Routing(scoring="sigmoid", renormalise=False, weigh_input=True)
EXPERTS = "feed_forward.experts"
NAMES = MoeNames(
    experts=transposed(f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj", interleaved=False),
    router="feed_forward.router.weight",
    shared="feed_forward.shared_expert",
)
CHUNK, FLOOR, GROWTH = 8192, 8192, 0.1
RELEASED = (48, 5120)  # layers and hidden size of Scout and of Maverick


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4Sizes(Sizes):
    """Sizes of a Llama 4, and how its layers attend."""

    turns: tuple[bool, ...]  # for each layer, whether it has rope and chunks
    chunk: int
    normalised: bool  # queries and keys of layers with rope
    growth: float  # of queries on layers without: see Attention.beta; 0: none
    floor: int


def config_from_gguf(meta: Fields, vocab: int) -> Llama4Sizes:
    """Read the keys under `llama4.`; what the file does not state is that of the released models."""
    sizes = gguf_sizes(meta, vocab, adjacent=True)
    layers, wide = len(sizes["heads"]), meta.integer("expert_feed_forward_length", 1, MAX_WIDTH)
    sparse = gguf_sparse(meta, layers)
    mixture = gguf_mixture(meta, sizes, shared=wide, sparse=sparse, routing=ROUTING)
    cfg = Llama4Sizes(
        **{**sizes, "windows": (0,) * layers},
        mixture=mixture,
        turns=tuple((i + 1) % 4 != 0 for i in range(layers)),
        chunk=CHUNK,
        normalised=mixture.experts != 128,
        growth=GROWTH,
        floor=FLOOR,
    )
    if (layers, cfg.hidden) != RELEASED:
        return exact_up_to(cfg, min(CHUNK, FLOOR) - 1, "its chunks, nor how queries grow")
    note = f"the file does not state its chunks of {CHUNK:,} tokens: they are those of Llama 4 Scout and Maverick"
    return replace(cfg, notes=(*cfg.notes, note))


def config_from_hf(config: Fields) -> Llama4Sizes:
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_decoder(config, base=5e5, adjacent=True, eps=1e-5)
    layers, wide = len(sizes["heads"]), config.integer("intermediate_size", 1, MAX_WIDTH)
    dense = config.integer("intermediate_size_mlp", 1, MAX_WIDTH, wide)
    check_width("intermediate", dense)
    sizes["intermediate"] = (dense,) * layers
    sparse = _sparse(config, layers)
    key = "attn_temperature_tuning"  # a flag, which early files write as 4
    stated = isinstance(config.get(key), bool)
    tunes = config.flag(key, True) if stated else config.integer(key, 0, 4, 4) > 0
    return Llama4Sizes(
        **sizes,
        mixture=hf_mixture(config, "intermediate_size", layers, shared=wide, sparse=sparse, routing=ROUTING),
        turns=_turns(config, layers),
        chunk=config.integer("attention_chunk_size", 1, MAX_CONTEXT, CHUNK),
        normalised=config.flag("use_qk_norm", True),
        growth=config.number("attn_scale", 0.0, 10.0, GROWTH) if tunes else 0.0,
        floor=config.integer("floor_scale", 1, MAX_CONTEXT, FLOOR),
    )


def _turns(config: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have rope, by a list of ones and zeros, or else all but every `no_rope_layer_interval`th."""
    step = config.integer("no_rope_layer_interval", 1, MAX_LAYERS, 4)
    stated = config.get("no_rope_layers") or [int((i + 1) % step != 0) for i in range(layers)]
    if not isinstance(stated, list) or len(stated) != layers or any(n not in (0, 1) for n in stated):
        raise BadModelFile(
            f"no_rope_layers is {str(stated)[:60]}; expected 0 or 1 for each of {layers} layers"
        )
    kinds = config.texts("layer_types", layers)
    expected = ["chunked_attention" if turns else "full_attention" for turns in stated]
    if kinds is not None and kinds != expected:
        raise BadModelFile("layer_types and no_rope_layers disagree about the layers without rope")
    return tuple(bool(n) for n in stated)


def _sparse(config: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have experts: those listed, or every `interleave_moe_layer_step`th."""
    step = config.integer("interleave_moe_layer_step", 1, MAX_LAYERS, 1)
    listed = config.get("moe_layers")
    listed = list(range(step - 1, layers, step)) if listed is None else listed
    if not isinstance(listed, list) or any(type(i) is not int or not 0 <= i < layers for i in listed):
        raise BadModelFile(f"moe_layers is {str(listed)[:60]}; expected a list of layers")
    sparse = set(listed)
    return tuple(i in sparse for i in range(layers))


def layer(cfg: Llama4Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer one of two attentions, and experts or an MLP."""
    how: dict[str, Any] = {"rope": None, "beta": cfg.growth, "original": cfg.floor, "shift": 1}
    if cfg.turns[i]:
        how = {"chunk": cfg.chunk, "qk_norm": "bare" if cfg.normalised else "none"}
    attention = Attention.of(cfg, i, **how)
    if cfg.mixture is not None and cfg.mixture.sparse[i]:
        return attention, Moe.of(cfg, NAMES)
    return attention, GatedMlp.of(cfg, i, hf="feed_forward")


FAMILY = Family(
    gguf_architecture="llama4",
    hf_classes=("Llama4ForCausalLM",),
    wrappers=("Llama4ForConditionalGeneration",),
    model_types=("llama4_text",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=layer,
    ends=DecoderEnds.of,
    towers=("llama4",),
)
