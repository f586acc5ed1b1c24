"""StarCoder2: layer norms and biases everywhere, and an MLP without a gate.

A GGUF does not state the window that holds on every layer: 4,096 tokens in the published models.
Source: arXiv 2402.19173; the window by transformers' docs/source/en/model_doc/starcoder2.md, read 2026-11.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, every_window, exact_up_to, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, NormForm, PlainMlp

NORM = NormForm(kind="layer", bias=True)
ACT = "gelu_pytorch_tanh"
WINDOW = 4096


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    cfg = Sizes(**gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon"))
    return cfg if any(cfg.windows) else exact_up_to(cfg, WINDOW, "its sliding window")


FAMILY = Family(
    gguf_architecture="starcoder2",
    hf_classes=("Starcoder2ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=lambda config: Sizes(
        **hf_decoder(config, every_window, act=ACT, tied=True, eps=1e-5, eps_key="norm_epsilon")
    ),
    parts=(Attention, PlainMlp),
    layer=lambda cfg, i: (
        Attention.of(cfg, i, bias="any", norm=NORM),
        PlainMlp.of(cfg, i, act="gelu", bias=True, norm=NORM, up_name="mlp.c_fc", down_name="mlp.c_proj"),
    ),
    ends=lambda cfg: DecoderEnds.of(cfg, norm=NORM),
)
