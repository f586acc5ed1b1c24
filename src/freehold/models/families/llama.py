"""Llama 1 to 3, SmolLM2, Mistral 7B and all that share their block.

Attention and a gated MLP, RMS norms before each, no biases (older derivatives have some on attention). GGUF files hold
q and k rows permuted so that adjacent elements turn together; safetensors hold halves.
Sources: arXiv 2302.13971 (Llama), 2307.09288 (Llama 2), 2407.21783 (Llama 3), 2310.06825 (Mistral's window).
Path: bind.read_source -> config -> layers
"""

from __future__ import annotations

from freehold.formats.fields import MAX_CONTEXT, Fields
from freehold.models.family import Family, Layer
from freehold.models.parts.attention import Attention
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.mlp import GatedMlp
from freehold.models.sizes import Sizes, gguf_sizes, hf_rope, hf_sizes, sliding_windows


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `llama.`."""
    return Sizes(**gguf_sizes(meta, vocab, adjacent=True))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a LlamaForCausalLM or MistralForCausalLM."""
    config.require("hidden_act", ("silu",), "silu")
    sizes = hf_sizes(config)
    windowed = config.text("model_type", "llama") == "mistral"
    window = config.integer("sliding_window", 0, MAX_CONTEXT, 0) if windowed else 0
    windows = sliding_windows(config, len(sizes["heads"]), window, lambda i: windowed)
    return Sizes(**sizes | hf_rope(config, sizes), windows=windows)


def layers(cfg: Sizes) -> tuple[Layer, ...]:
    """Give each layer attention and an MLP."""
    return tuple(
        Layer((Attention.of(cfg, i, bias="any", gguf_pairs=True), GatedMlp.of(cfg, i)))
        for i in range(cfg.layers)
    )


FAMILY = Family(
    gguf_architecture="llama",
    hf_classes=("LlamaForCausalLM", "MistralForCausalLM"),
    model_types=("mistral",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layers=layers,
    ends=DecoderEnds.of,
)
