"""The sizes of models with latent attention, as both file formats state them.

Knows keys, limits and the scale that YaRN's temperature gives scores; knows no tensor.
Sources: arXiv 2405.04434 (DeepSeek-V2), 2309.00071 (YaRN).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeSpec, Scaling, hf_rope_section, rope_from_gguf, yarn_mscale
from freehold.run.models.config.sizes import (
    MAX_EPS,
    MIN_EPS,
    Sizes,
    check_width,
    checked_sizes,
    gguf_layers,
    hf_sizes,
)

GGUF_LOG_FACTOR = 0.1  # a GGUF states a tenth of mscale_all_dim as its yarn_log_multiplier
STEP = 16  # rows of a native panel, which heads' parts are made of


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSizes(Sizes):
    """A decoder's sizes, and those of its latent attention; head_dim is a query's."""

    latent: int
    query: int = 0  # width that queries pass on their way; 0: one projection
    nope: int  # of a query: what does not turn
    turned: int
    value: int
    scale: float
    temper: tuple[float, int] | None = None  # beta, and the length that queries grow from


def gguf_latent(meta: Fields, vocab: int, *, turns: bool = True) -> dict[str, Any]:
    """Read a GGUF's keys as arguments for LatentSizes; `turns`: whether a part of keys is rotated."""
    layers = gguf_layers(meta)
    context = meta.integer("context_length", 1, MAX_CONTEXT)
    turned = meta.integer("rope.dimension_count", 2, MAX_WIDTH)
    rope, scale = _gguf_rope(meta, turned, context) if turns else (None, 1.0)
    # Files with Wkvb in one piece state the widths of a head's query and of its value without _mla.
    end = "_mla" if meta.get("attention.key_length_mla") is not None else ""
    head = meta.integer(f"attention.key_length{end}", 1, MAX_WIDTH)
    value = meta.integer(f"attention.value_length{end}", 1, MAX_WIDTH)
    beta = meta.number("attention.temperature_scale", 0.0, 100.0, 0.0)
    return _latent_sizes(
        vocab=vocab,
        hidden=meta.integer("embedding_length", 1, MAX_WIDTH),
        intermediate=(meta.integer("feed_forward_length", 1, MAX_WIDTH),) * layers,
        heads=(meta.integer("attention.head_count", 1, MAX_HEADS),) * layers,
        head_dim=head,
        eps=meta.number("attention.layer_norm_rms_epsilon", MIN_EPS, MAX_EPS),
        context=context,
        tied=True,
        rope=rope,
        latent=meta.integer("attention.kv_lora_rank", 1, MAX_WIDTH),
        query=meta.integer("attention.q_lora_rank", 0, MAX_WIDTH, 0),
        turned=turned,
        value=value,
        scale=scale * head**-0.5,
        temper=(beta, meta.integer("attention.temperature_length", 1, MAX_CONTEXT)) if beta else None,
    )


def _gguf_rope(meta: Fields, turned: int, context: int) -> tuple[RopeSpec, float]:
    """Return the rope, and what its temperature multiplies scores by; cosines and sines have none then."""
    rope = rope_from_gguf(meta, head_dim=turned, adjacent=True, context=context)
    if rope.scaling != "yarn":
        return rope, 1.0
    weight = meta.number("rope.scaling.yarn_log_multiplier", 0.0, 1.0) / GGUF_LOG_FACTOR
    factor = 1.0 if weight else yarn_mscale(rope.factor)
    return replace(rope, attention_factor=factor), yarn_mscale(rope.factor, weight) ** 2


def hf_latent(
    config: Fields, *, turns: bool = True, scalings: tuple[Scaling, ...] = ("default", "yarn"), **assumed: Any
) -> dict[str, Any]:
    """Read a config.json as arguments for LatentSizes; keywords are what the family's class assumes."""
    config.require("hidden_act", ("silu",), "silu")
    config.refuse("attention_bias", "a bias on attention")
    config.number("rms_norm_eps", MIN_EPS, MAX_EPS)  # classes assume one of two values: it must be stated
    nope = config.integer("qk_nope_head_dim", 1, MAX_WIDTH)
    turned = config.integer("qk_rope_head_dim", 2, MAX_WIDTH)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = config.get("num_key_value_heads")
    if kv_heads not in (None, 1, heads):
        raise UnsupportedModel(f"num_key_value_heads is {kv_heads}; latents serve all {heads} heads alike")
    # By head_dim files mean one thing or another: the parts of a head are stated apart.
    sizes = hf_sizes(config.without("head_dim", "num_key_value_heads"), head_dim=nope + turned, **assumed)
    rope, scale = _hf_rope(config, turned, sizes["context"], scalings) if turns else (None, 1.0)
    return _latent_sizes(
        **sizes | {"rope": rope},
        latent=config.integer("kv_lora_rank", 1, MAX_WIDTH),
        query=config.integer("q_lora_rank", 1, MAX_WIDTH, 0),
        turned=turned,
        value=config.integer("v_head_dim", 1, MAX_WIDTH),
        scale=scale * (nope + turned) ** -0.5,
        temper=_hf_temper(config, rope),
    )


def _hf_rope(
    config: Fields, turned: int, context: int, scalings: tuple[Scaling, ...]
) -> tuple[RopeSpec, float]:
    section = config.section("rope_parameters") or config.section("rope_scaling") or Fields({})
    section = section.without("partial_rotary_factor")  # qk_rope_head_dim says it
    base = config.number("rope_theta", 1.0, 1e12, 10_000.0)
    rope = hf_rope_section(section, head_dim=turned, context=context, base=base)
    rope = replace(rope, adjacent=config.flag("rope_interleave", True))
    if rope.scaling not in scalings:
        raise UnsupportedModel(
            f"rope_type is {rope.scaling!r}; latent attention of this class takes {', '.join(scalings)}"
        )
    weight = section.number("mscale_all_dim", 0.0, 100.0, 0.0) if rope.scaling == "yarn" else 0.0
    return rope, yarn_mscale(rope.factor, weight) ** 2 if weight else 1.0


def _hf_temper(config: Fields, rope: RopeSpec | None) -> tuple[float, int] | None:
    section = config.section("rope_parameters") or config.section("rope_scaling") or Fields({})
    beta = section.number("llama_4_scaling_beta", 0.0, 100.0, 0.0)
    if not beta:
        return None
    if rope is None or not rope.original:
        raise BadModelFile("llama_4_scaling_beta needs original_max_position_embeddings")
    return beta, rope.original


def _latent_sizes(**sizes: Any) -> dict[str, Any]:
    """Return `sizes` when the parts of heads fit together and fit the kernels."""
    nope = sizes["head_dim"] - sizes["turned"]
    if nope < 1:
        raise BadModelFile(
            f"a query is {sizes['head_dim']} wide, of which {sizes['turned']} turn; expected fewer"
        )
    for name in ("latent", "value"):
        if sizes[name] % STEP:
            raise UnsupportedModel(
                f"the {name} width is {sizes[name]}; only multiples of {STEP} are supported"
            )
    for name in ("latent", "query"):
        check_width(name, sizes[name])
    check_width("attention output", sizes["heads"][0] * sizes["value"])
    rope = sizes["rope"]
    if rope is not None and rope.scaling == "yarn":
        sizes["context"] = max(sizes["context"], min(int(rope.original * rope.factor), MAX_CONTEXT))
    layers = len(sizes["heads"])
    sizes |= {"kv_heads": (1,) * layers, "windows": (0,) * layers}
    return checked_sizes(**sizes) | {"nope": nope}
