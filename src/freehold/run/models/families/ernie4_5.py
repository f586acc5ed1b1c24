"""ERNIE 4.5, dense: a Llama block whose adjacent elements turn together, in both file formats.

Source: Baidu's ERNIE 4.5 report of June 2025.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("use_bias", "a bias on attention and MLP")
    return Sizes(**hf_decoder(config, adjacent=True, base=500_000.0, head_dim=128, tied=True, eps=1e-5))


FAMILY = Family(
    gguf_architecture="ernie4_5",
    hf_classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=True)),
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i), GatedMlp.of(cfg, i)),
    ends=DecoderEnds.of,
)
