"""Llama 1 to 3, SmolLM2, Mistral 7B, Nemo, Small 3, Codestral, Ministral 8B and all that share their block.

Heads may be wider together than the hidden width (Nemo), and a Ministral 8B alternates full and sliding layers.
Attention and a gated MLP, RMS norms before each, no biases (older derivatives have some on attention). GGUF files hold
q and k rows permuted so that adjacent elements turn together; safetensors hold halves.
Sources: arXiv 2302.13971 (Llama), 2307.09288 (Llama 2), 2407.21783 (Llama 3), 2310.06825 (Mistral's window).
"""

from __future__ import annotations

from freehold.run.formats.fields import MAX_CONTEXT, Fields
from freehold.run.models.config.sizes import Sizes, completed, gguf_sizes, hf_decoder, sliding_windows
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

WINDOW = 4096  # what Mistral's classes assume


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `llama.`, which do not state a Mistral's window."""
    return completed(Sizes(**gguf_sizes(meta, vocab, adjacent=True)))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a LlamaForCausalLM, MistralForCausalLM or MinistralForCausalLM."""
    return Sizes(**hf_decoder(config, _windows))


def _windows(config: Fields, layers: int) -> tuple[int, ...]:
    """A Mistral's window holds on every layer, or on those that are listed; a null one is none, a missing one 4096."""
    windowed = config.text("model_type", "llama") in ("mistral", "ministral")
    assumed = 0 if "sliding_window" in config.values else WINDOW
    window = config.integer("sliding_window", 0, MAX_CONTEXT, assumed) if windowed else 0
    return sliding_windows(config, layers, window, lambda i: windowed)


FAMILY = Family(
    gguf_architecture="llama",
    hf_classes=("LlamaForCausalLM", "MistralForCausalLM", "MinistralForCausalLM"),
    model_types=("mistral", "ministral"),
    wrappers=(
        "Mistral3ForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "VoxtralForConditionalGeneration",
    ),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, bias="any", gguf_pairs=True), GatedMlp.of(cfg, i)),
    ends=DecoderEnds.of,
    towers=("smolvlm", "pixtral", "voxtral"),
)
