"""Phi-3, 3.5, 4 and 4-mini: a Llama block whose q, k and v are one matrix, and whose gate and up are another.

Extended models have a longrope, of whose two sets of factors the context chooses one. Phi-3-mini of 4,096 tokens has a
sliding window, and Phi-3.5 one wider than its context; a GGUF states 0 where there is none.
Source: arXiv 2404.14219, 2412.08905 (Phi-4), 2503.01743 (Phi-4-mini).
"""

from __future__ import annotations

from dataclasses import replace

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder, window_within
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `phi3.`; longrope's factors are tensors of the file."""
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    original = meta.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT, sizes["context"])
    factor = meta.number("rope.scaling.attn_factor", 1e-6, 1e6, 1.0)
    sizes["rope"] = replace(sizes["rope"], scaling="longrope", original=original, attention_factor=factor)
    sizes["windows"] = tuple(w if w < sizes["context"] else 0 for w in sizes["windows"])
    return Sizes(**sizes)


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("attention_bias", "a bias on attention")
    cfg = Sizes(**hf_decoder(config, window_within, eps=1e-5))
    # Early files call longrope yarn.
    if cfg.rope is not None and cfg.rope.scaling not in ("default", "longrope"):
        raise UnsupportedModel(f"rope_type is {cfg.rope.scaling!r}; a Phi-3 has default or longrope")
    return cfg


FAMILY = Family(
    gguf_architecture="phi3",
    hf_classes=("Phi3ForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, fused=True), GatedMlp.of(cfg, i, fused=True)),
    ends=DecoderEnds.of,
)
