"""Arcee's AFM: a Llama block whose MLP has no gate, and squares what is positive.

GGUF files hold q and k rows permuted so that adjacent elements turn together; safetensors hold halves.
Source: Arcee's AFM-4.5B files of July 2025; relu^2 is of arXiv 2109.08668.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import PlainMlp


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `arcee.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=True))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of an ArceeForCausalLM."""
    config.refuse("mlp_bias", "a bias on the MLP")
    return Sizes(**hf_decoder(config, act="relu2", eps=1e-5))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i, bias="any", gguf_pairs=True), PlainMlp.of(cfg, i, act="relu2")


FAMILY = Family(
    gguf_architecture="arcee",
    hf_classes=("ArceeForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
