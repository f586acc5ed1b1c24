"""StarCoder2: layer norms and biases everywhere, and an MLP without a gate.

A GGUF does not state the window that holds on every layer: 4,096 tokens in the published models.
Source: arXiv 2402.19173; the window by transformers' docs/source/en/model_doc/starcoder2.md, read 2026-11.
Path: bind.read_source -> config -> layer
"""

from __future__ import annotations

from freehold.formats.fields import MAX_CONTEXT, Fields
from freehold.models.config.lost import exact_up_to
from freehold.models.config.sizes import Sizes, gguf_sizes, hf_decoder, sliding_windows
from freehold.models.family import Family, LayerPart
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import PlainMlp
from freehold.models.parts.norms import NormForm

NORM = NormForm(kind="layer", bias=True)
ACT = "gelu_pytorch_tanh"
WINDOW = 4096


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `starcoder2.`."""
    cfg = Sizes(**gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon"))
    return cfg if any(cfg.windows) else exact_up_to(cfg, WINDOW, "its sliding window")


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a Starcoder2ForCausalLM."""
    return Sizes(**hf_decoder(config, _windows, act=ACT, tied=True, eps=1e-5, eps_key="norm_epsilon"))


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0)
    return sliding_windows(config, layers, window, lambda i: True)


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention and an MLP."""
    names = {"up_name": "mlp.c_fc", "down_name": "mlp.c_proj"}
    return Attention.of(cfg, i, bias="any", norm=NORM), PlainMlp.of(
        cfg, i, act="gelu", bias=True, norm=NORM, **names
    )


def ends(cfg: Sizes) -> DecoderEnds:
    """The last norm is a layer norm too."""
    return DecoderEnds.of(cfg, norm=NORM)


FAMILY = Family(
    gguf_architecture="starcoder2",
    hf_classes=("Starcoder2ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=ends,
)
