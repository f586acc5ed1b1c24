"""Qwen1.5, 2 and 2.5 (Coder, Math), QwQ, R1-distill-Qwen.

A Llama block with biases on q, k and v; rotary pairs are halves in both file formats.
Source: arXiv 2407.10671, 2412.15115.
"""

from __future__ import annotations

from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder, qwen_windows
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

FAMILY = Family(
    gguf_architecture="qwen2",
    hf_classes=("Qwen2ForCausalLM",),
    wrappers=("InternVLForConditionalGeneration", "InternVLChatModel"),
    config_from_gguf=lambda meta, vocab: Sizes(**gguf_sizes(meta, vocab, adjacent=False)),
    config_from_hf=lambda config: Sizes(**hf_decoder(config, qwen_windows)),
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, bias="qkv"), GatedMlp.of(cfg, i)),
    ends=DecoderEnds.of,
    towers=("internvl",),
)
