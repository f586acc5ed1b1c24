"""Nemotron-4 and Minitron, dense: layer norms around 1, a rope on half of a head, an MLP that squares what is positive.

GGUF files store the norm factors; safetensors store them minus 1, so 1 is added.
Source: arXiv 2402.16819 (Nemotron-4), 2407.14679 (Minitron).
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import PlainMlp
from freehold.models.parts.norms import NormForm

NORM = NormForm(kind="layer", bias=True, offset=1.0)


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `nemotron.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon"))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a NemotronForCausalLM."""
    config.refuse("mlp_bias", "a bias on the MLP")
    config.refuse("attention_bias", "a bias on attention")
    return Sizes(**hf_decoder(config, act="relu2", partial=0.5, eps=1e-5, eps_key="norm_eps"))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i, norm=NORM), PlainMlp.of(cfg, i, act="relu2", norm=NORM)


def ends(cfg: Sizes) -> DecoderEnds:
    """The last norm is a layer norm too."""
    return DecoderEnds.of(cfg, norm=NORM)


FAMILY = Family(
    gguf_architecture="nemotron",
    hf_classes=("NemotronForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=ends,
)
