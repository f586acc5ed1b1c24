"""Qwen3, dense.

A Llama block whose query and key heads pass an RMS norm of their own before they turn; heads are as wide as
the file says (128), whatever the hidden width. No biases; rotary pairs are halves in both file formats.
Source: arXiv 2505.09388.
"""

from __future__ import annotations

from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder, qwen_windows
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

FAMILY = Family(
    gguf_architecture="qwen3",
    hf_classes=("Qwen3ForCausalLM",),
    wrappers=("InternVLForConditionalGeneration", "InternVLChatModel"),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=False)),
    config_from_hf=lambda config: Sizes(**hf_decoder(config, qwen_windows, head_dim=128)),
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, qk_norm="head"), GatedMlp.of(cfg, i)),
    ends=DecoderEnds.of,
    towers=("internvl",),
)
