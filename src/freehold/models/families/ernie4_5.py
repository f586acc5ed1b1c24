"""ERNIE 4.5, dense: a Llama block whose adjacent elements turn together, in both file formats.

Source: Baidu's ERNIE 4.5 report of June 2025.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import Fields
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `ernie4_5.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=True))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of an Ernie4_5ForCausalLM."""
    config.refuse("use_bias", "a bias on attention and MLP")
    return Sizes(**hf_decoder(config, adjacent=True, base=500_000.0, head_dim=128, tied=True, eps=1e-5))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i), GatedMlp.of(cfg, i)


FAMILY = Family(
    gguf_architecture="ernie4_5",
    hf_classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
