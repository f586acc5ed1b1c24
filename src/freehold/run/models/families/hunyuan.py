"""Hunyuan, dense: a Llama block that normalises queries and keys after they have turned.

A rope of type `dynamic` with an alpha is static: its base is base * alpha ^ (d / (d - 2)). A GGUF holds that base.
Source: Tencent's Hunyuan dense files of July 2025.
"""

from __future__ import annotations

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import hf_ntk_alpha
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

NAMES = ("query_layernorm", "key_layernorm")


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("attention_bias", "a bias on attention")
    config.refuse("use_cla", "keys and values that layers share")
    if not config.flag("use_qk_norm", True):
        raise UnsupportedModel("use_qk_norm is false; only norms on queries and keys are supported")
    return Sizes(**hf_decoder(hf_ntk_alpha(config), eps=1e-5))


FAMILY = Family(
    gguf_architecture="hunyuan-dense",
    hf_classes=("HunYuanDenseV1ForCausalLM",),
    model_types=("hunyuan_v1_dense",),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=False)),
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, qk_norm="after", qk_names=NAMES), GatedMlp.of(cfg, i)),
    ends=DecoderEnds.of,
)
