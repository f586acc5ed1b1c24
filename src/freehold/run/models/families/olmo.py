"""OLMo 1: layer norms without weights, and limits on queries, keys and values.

GGUF files hold q and k rows permuted so that adjacent elements turn together; safetensors hold halves.
Source: arXiv 2402.00838.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp, NormForm

NORM = NormForm(kind="layer", weight=False)
EPS = 1e-5  # config.json has no key for it


@dataclass(frozen=True, slots=True, kw_only=True)
class OlmoSizes(Sizes):
    """Sizes of an OLMo."""

    clip: float  # limit of queries, keys and values; 0: none


def config_from_gguf(meta: Fields, vocab: int) -> OlmoSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=True, eps="layer_norm_epsilon")
    return OlmoSizes(**sizes, clip=meta.number("attention.clamp_kqv", 0.0, 1e6, 0.0))


def config_from_hf(config: Fields) -> OlmoSizes:
    config.refuse("attention_bias", "a bias on attention")
    return OlmoSizes(**hf_decoder(config, eps=EPS), clip=config.number("clip_qkv", 0.0, 1e6, 0.0))


def layer(cfg: OlmoSizes, i: int) -> tuple[LayerPart, ...]:
    return Attention.of(cfg, i, norm=NORM, clip=cfg.clip, gguf_pairs=True), GatedMlp.of(cfg, i, norm=NORM)


FAMILY = Family(
    gguf_architecture="olmo",
    hf_classes=("OlmoForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=lambda cfg: DecoderEnds.of(cfg, norm=NORM),
)
