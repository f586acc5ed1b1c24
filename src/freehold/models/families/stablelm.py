"""StableLM 3B, and StableLM 2 of 1.6B: layer norms with biases, and a rope on a quarter of a head.

The 12B, whose attention and MLP are parallel and whose heads are normalised, is refused.
Source: arXiv 2402.17834.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp
from freehold.models.parts.norms import NormForm

NORM = NormForm(kind="layer", bias=True)
PARALLEL = "a parallel block"


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `stablelm.`."""
    meta.refuse("use_parallel_residual", PARALLEL)
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon"))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a StableLmForCausalLM."""
    config.refuse("use_parallel_residual", PARALLEL)
    config.refuse("qk_layernorm", "a norm on queries and keys")
    return Sizes(**hf_decoder(config, partial=0.25, eps=1e-5, eps_key="layer_norm_eps"))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i, bias="any", norm=NORM), GatedMlp.of(cfg, i, norm=NORM)


def ends(cfg: Sizes) -> DecoderEnds:
    """The last norm is a layer norm too."""
    return DecoderEnds.of(cfg, norm=NORM)


FAMILY = Family(
    gguf_architecture="stablelm",
    hf_classes=("StableLmForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=ends,
)
