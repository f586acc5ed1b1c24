"""Gemma 1 and CodeGemma: a Llama block with GELU gates, and embeddings times sqrt(hidden).

GGUF files store the norm factors; safetensors store them minus 1, so 1 is added. The first files say `gelu`, and mean
its tanh form.
Source: arXiv 2403.08295.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

import math

from freehold.formats.fields import Fields
from freehold.models.config.rope import rope_from_hf
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_sizes
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp
from freehold.models.parts.norms import NormForm

NORM = NormForm(offset=1.0)
ACT = "gelu_pytorch_tanh"


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `gemma.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=False))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a GemmaForCausalLM."""
    config.require("hidden_act", (ACT, "gelu"), ACT)
    config.require("hidden_activation", (ACT,), ACT)
    config.refuse("use_bidirectional_attention", "attention to later tokens")
    config.refuse("attention_bias", "a bias on attention")
    sizes = hf_sizes(config, tied=True, head_dim=256)
    rope = rope_from_hf(config, head_dim=sizes["head_dim"], context=sizes["context"])
    return Sizes(**sizes, rope=rope, windows=(0,) * len(sizes["heads"]))


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    return Attention.of(cfg, i, norm=NORM), GatedMlp.of(cfg, i, act="gelu", norm=NORM)


def ends(cfg: Sizes) -> DecoderEnds:
    """Scale embeddings by sqrt(hidden)."""
    return DecoderEnds.of(cfg, scale=math.sqrt(cfg.hidden), norm=NORM)


FAMILY = Family(
    gguf_architecture="gemma",
    hf_classes=("GemmaForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=ends,
)
