"""StableLM 3B, and StableLM 2 of 1.6B: layer norms with biases, and a rope on a quarter of a head.

The 12B, whose attention and MLP are parallel and whose heads are normalised, is refused.
Source: arXiv 2402.17834.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp, NormForm

NORM = NormForm(kind="layer", bias=True)
PARALLEL = "a parallel block"


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    meta.refuse("use_parallel_residual", PARALLEL)
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon"))


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("use_parallel_residual", PARALLEL)
    config.refuse("qk_layernorm", "a norm on queries and keys")
    return Sizes(**hf_decoder(config, partial=0.25, eps=1e-5, eps_key="layer_norm_eps"))


FAMILY = Family(
    gguf_architecture="stablelm",
    hf_classes=("StableLmForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, bias="any", norm=NORM), GatedMlp.of(cfg, i, norm=NORM)),
    ends=lambda cfg: DecoderEnds.of(cfg, norm=NORM),
)
