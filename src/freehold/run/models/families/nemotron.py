"""Nemotron-4 and Minitron, dense: layer norms around 1, a rope on half of a head, an MLP that squares what is positive.

GGUF files store the norm factors; safetensors store them minus 1, so 1 is added.
Source: arXiv 2402.16819 (Nemotron-4), 2407.14679 (Minitron).
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, NormForm, PlainMlp

NORM = NormForm(kind="layer", bias=True, offset=1.0)


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("mlp_bias", "a bias on the MLP")
    config.refuse("attention_bias", "a bias on attention")
    return Sizes(**hf_decoder(config, act="relu2", partial=0.5, eps=1e-5, eps_key="norm_eps"))


FAMILY = Family(
    gguf_architecture="nemotron",
    hf_classes=("NemotronForCausalLM",),
    config_from_gguf=lambda meta, vocab: Sizes(
        **gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon")
    ),
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, norm=NORM), PlainMlp.of(cfg, i, act="relu2", norm=NORM)),
    ends=lambda cfg: DecoderEnds.of(cfg, norm=NORM),
)
