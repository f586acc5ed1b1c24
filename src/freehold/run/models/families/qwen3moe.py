"""Qwen3-MoE and Qwen3-Coder: a Qwen3 block whose MLP is a mixture of 128 experts, eight of them chosen.

The chosen experts' weights are divided by their sum; a GGUF does not say so. Some layers of a safetensors model may
have a dense MLP instead.
Source: arXiv 2505.09388.
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.mixtures import gguf_mixture, qwen_mixture
from freehold.run.models.config.sizes import Sizes, gguf_sizes
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, mlp_or_experts


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    return Sizes(**sizes, mixture=gguf_mixture(meta, sizes))


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("attention_bias", "a bias on attention")
    return qwen_mixture(config)


FAMILY = Family(
    gguf_architecture="qwen3moe",
    hf_classes=("Qwen3MoeForCausalLM",),
    wrappers=("InternVLForConditionalGeneration", "InternVLChatModel"),
    model_types=("qwen3_moe",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=lambda cfg, i: (Attention.of(cfg, i, qk_norm="head"), mlp_or_experts(cfg, i)),
    ends=DecoderEnds.of,
    towers=("internvl",),
)
