"""GLM-4 9B of 2024 and GLM-Edge: GLM-4 of 0414 without the two norms after each half, and biases on q, k and v.

Rope turns half of a head in adjacent pairs; gate and up are one matrix in both file formats. A GGUF that was made from
the model's first files holds q, k and v as one matrix; one from transformers' files holds them apart.
Source: arXiv 2406.12793.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.families.glm4 import EPS
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.attention import ApartOrFused


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `chatglm.`, which state no width of a head: it follows from the hidden width."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=True))


def config_from_hf(config: Fields) -> Sizes:
    return Sizes(**hf_decoder(config, partial=0.5, adjacent=True, head_dim=128, eps=EPS))


FAMILY = Family(
    gguf_architecture="chatglm",
    hf_classes=("GlmForCausalLM",),
    model_types=("glm",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (ApartOrFused.of(cfg, i, bias="any"), GatedMlp.of(cfg, i, fused=True)),
    ends=DecoderEnds.of,
)
