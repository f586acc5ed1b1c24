"""Phi-3.5-MoE: layer norms with biases, biases on attention, and two experts chosen by a sparse mixer.

The mixer's threshold is twice a jitter of 0.01, which a GGUF does not state. Nor does it state by how much the model's
longrope multiplies cosine and sine, 1.243 on both sides: converters write the 1.19 of Phi-3.5's own rule.
Sources: arXiv 2404.14219 (Phi-3.5-MoE), 2409.12136 (the sparse mixer).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder, window_within
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, NormForm
from freehold.run.models.parts.moe import MIXTRAL, Moe

ROUTING = Routing(scoring="sparsemixer", renormalise=False, jitter=0.01)
NORM = NormForm(kind="layer", bias=True)
MSCALE = 1.243163121016122  # of Phi-3.5-MoE's config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class PhiMoeSizes(Sizes):
    """Sizes of a Phi-MoE, and which biases it has."""

    bias: str
    head_bias: bool


def config_from_gguf(meta: Fields, vocab: int) -> PhiMoeSizes:
    """Read the keys under `phimoe.`; all biases are there."""
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    sizes["windows"] = tuple(0 if w >= sizes["context"] else w for w in sizes["windows"])
    if meta.get("rope.scaling.attn_factor") is not None:
        original = meta.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT)
        rope: dict[str, Any] = {"scaling": "longrope", "original": original, "attention_factor": MSCALE}
        sizes["rope"] = replace(sizes["rope"], **rope)
    intermediate = sizes["intermediate"][0]
    mixture = gguf_mixture(meta, sizes, intermediate=intermediate, routing=ROUTING)
    return PhiMoeSizes(**sizes, mixture=mixture, bias="any", head_bias=True)


def config_from_hf(config: Fields) -> PhiMoeSizes:
    sizes = hf_decoder(config, window_within, base=1e6, eps=1e-5)
    jitter = config.number("router_jitter_noise", 1e-6, 1.0, ROUTING.jitter)
    routing = replace(ROUTING, jitter=jitter)
    mixture = hf_mixture(config, "intermediate_size", len(sizes["heads"]), routing=routing)
    bias = "any" if config.flag("attention_bias", False) else "none"
    return PhiMoeSizes(**sizes, mixture=mixture, bias=bias, head_bias=config.flag("lm_head_bias", False))


def layer(cfg: PhiMoeSizes, i: int) -> tuple[LayerPart, ...]:
    options: dict[str, Any] = {"bias": cfg.bias, "norm": NORM}
    return Attention.of(cfg, i, **options), Moe.of(cfg, MIXTRAL, norm=NORM)


def ends(cfg: PhiMoeSizes) -> DecoderEnds:
    """The head has a layer norm before it and a bias after it."""
    return DecoderEnds.of(cfg, norm=NORM, bias=cfg.head_bias)


FAMILY = Family(
    gguf_architecture="phimoe",
    hf_classes=("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layer=layer,
    ends=ends,
)
