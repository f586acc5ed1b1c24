"""Arcee's AFM: a Llama block whose MLP has no gate, and squares what is positive.

GGUF files hold q and k rows permuted so that adjacent elements turn together; safetensors hold halves.
Source: Arcee's AFM-4.5B files of July 2025; relu^2 is of arXiv 2109.08668.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, PlainMlp


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("mlp_bias", "a bias on the MLP")
    return Sizes(**hf_decoder(config, act="relu2", eps=1e-5))


FAMILY = Family(
    gguf_architecture="arcee",
    hf_classes=("ArceeForCausalLM",),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=True)),
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=lambda cfg, i: (
        Attention.of(cfg, i, bias="any", gguf_pairs=True),
        PlainMlp.of(cfg, i, act="relu2"),
    ),
    ends=DecoderEnds.of,
)
