"""Gemma 1 and CodeGemma: a Llama block with GELU gates, and embeddings times sqrt(hidden).

GGUF files store the norm factors; safetensors store them minus 1, so 1 is added. The first files say `gelu`, and mean
its tanh form.
Source: arXiv 2403.08295.
"""

from __future__ import annotations

import math

from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import rope_from_hf
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_sizes
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp, NormForm

NORM = NormForm(offset=1.0)
ACT = "gelu_pytorch_tanh"


def check_gemma(config: Fields) -> None:
    """Refuse what no Gemma of text has."""
    config.require("hidden_activation", (ACT,), ACT)
    config.refuse("use_bidirectional_attention", "attention to later tokens")
    config.refuse("attention_bias", "a bias on attention")


def config_from_hf(config: Fields) -> Sizes:
    config.require("hidden_act", (ACT, "gelu"), ACT)
    check_gemma(config)
    sizes = hf_sizes(config, tied=True, head_dim=256)
    rope = rope_from_hf(config, head_dim=sizes["head_dim"], context=sizes["context"])
    return Sizes(**sizes, rope=rope, windows=(0,) * len(sizes["heads"]))


def ends(cfg: Sizes) -> DecoderEnds:
    return DecoderEnds.of(cfg, scale=math.sqrt(cfg.hidden), norm=NORM)


FAMILY = Family(
    gguf_architecture="gemma",
    hf_classes=("GemmaForCausalLM",),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=False)),
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, norm=NORM), GatedMlp.of(cfg, i, act="gelu", norm=NORM)),
    ends=ends,
)
