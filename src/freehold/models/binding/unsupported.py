"""Architectures that are known and not computed, each with what it has that the engine lacks.

Knows names as both file formats write them, what sets each architecture apart, and the keys of arithmetic that most
families do not have; knows no family that is computed.
A name that a family registers wins over one that is here. Sources: the architectures' classes in transformers 5.24
and their loaders in llama.cpp, read 2026-11.
Path: bind.read_source, bind.refusal -> missing_part; bind.read_source -> NEUTRAL, true_architecture
"""

from __future__ import annotations

from collections.abc import Mapping

_MIXED_STREAMS = "several residual streams that are mixed in each layer"
_INDEXED = "attention to tokens that an index picks"
_KDA = "a delta rule with a decay for each channel"

# Keys of a GGUF that change arithmetic, and the value that changes none (0 never does). A family reads those that its
# models have; one that states another is computed as something else, and refused.
NEUTRAL: Mapping[str, float] = {
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.output_scale": 1.0,
    "attention.scale": 0.0,
    "attention.shared_kv_layers": 0,
    "attention.sliding_window": 0,
    "attention.temperature_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "embedding_length_per_layer_input": 0,
    "embedding_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "hyper_connection.count": 0,
    "logit_scale": 1.0,
    "moe_latent_size": 0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "router_logit_softcapping": 0.0,
    "swiglu_clamp_exp": 0.0,
    "swiglu_clamp_shexp": 0.0,
    "use_parallel_residual": 0,
}

# What the engine lacks, and the names of the architectures that need it.
LACKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        f"compressed sparse attention, {_MIXED_STREAMS} and experts chosen by a token's hash",
        ("deepseek4", "deepseek_v4", "DeepseekV4ForCausalLM"),
    ),
    (
        f"{_INDEXED}, hashed n-gram embeddings and {_MIXED_STREAMS}",
        (
            "qwen4exp",
            "qwen4_exp",
            "qwen4_exp_text",
            "Qwen4ExpForCausalLM",
            "Qwen4ExpForConditionalGeneration",
        ),
    ),
    (
        f"{_KDA} beside attention to earlier layers' outputs, and experts in a latent width",
        ("kimi-k3", "kimi_k3", "KimiK3ForCausalLM"),
    ),
    (
        f"{_KDA}, {_INDEXED} and {_MIXED_STREAMS}",
        ("glm5-next", "glm5_next", "Glm5NextForCausalLM"),
    ),
    (
        f"{_INDEXED}, keys and values that layers share, and learned rope factors",
        (
            "mistral-large4",
            "mistral_large4",
            "mistral_large4_text",
            "MistralLarge4ForConditionalGeneration",
        ),
    ),
    ("attention to blocks that an index picks", ("minimax-m3", "minimax_m3", "MiniMaxM3ForCausalLM")),
    (
        "linear attention with a decay for each head",
        ("minimax-m1", "minimax_m1", "MiniMaxM1ForCausalLM", "minimax", "MiniMaxForCausalLM"),
    ),
    ("its attention and its router", ("hy_v4", "HYV4ForCausalLM")),
    (
        f"{_KDA} beside latent attention in groups of layers",
        ("bailingmoe3", "bailing_hybrid", "BailingHybridForCausalLM"),
    ),
    (
        "per-layer head counts and gated attention in windows",
        ("laguna", "LagunaForCausalLM", "step35", "step3p5", "step3p7", "Step35ForCausalLM"),
    ),
    (
        "windows whose heads have other widths, with sinks",
        ("mimo2", "mimo_v2", "mimo_v2_flash", "MiMoV2FlashForCausalLM"),
    ),
    (
        "attention with an output gate on normalised embeddings",
        ("muse-glimmer", "muse_glimmer", "MuseGlimmerForCausalLM", "afmoe", "AfmoeForCausalLM"),
    ),
    (
        "experts whose number and width differ from block to block",
        ("nemotron_h_puzzle", "NemotronHPuzzleForCausalLM"),
    ),
    ("attention blocks that layers share", ("zamba2", "Zamba2ForCausalLM")),
    ("rotary positions beside Mamba-2, judged by a reference", ("bamba", "BambaForCausalLM")),
    ("Mamba-1 states", ("jamba", "JambaForCausalLM", "mamba", "MambaForCausalLM", "FalconMambaForCausalLM")),
    (
        "a rounding of each token's activations to eight bits, after which no two orders of sums agree",
        ("bitnet", "BitNetForCausalLM"),
    ),
    ("xIELU, an activation with weights of its own", ("apertus", "ApertusForCausalLM")),
    ("attention to images in some layers", ("mllama", "MllamaForConditionalGeneration")),
    ("layers of their own shapes each (a searched architecture)", ("deci", "DeciLMForCausalLM")),
    ("zero-computation experts and two attentions a layer", ("longcat_flash", "LongcatFlashForCausalLM")),
    ("experts in every layer, judged by a reference", ("solar_open", "SolarOpenForCausalLM")),
    (f"{_KDA} beside attention without positions", ("solar_open2", "SolarOpen2ForCausalLM")),
)
# Families whose GGUFs have another one's architecture and other keys, by the tokenizer that they name (its `pre`):
# llama.cpp writes SolarOpen as glm4moe, without a width for dense layers.
_BORROWED = {"solar-open": "solar_open"}
_BY_NAME = {name: lack for lack, names in LACKS for name in names}


def true_architecture(stated: str, tokenizer: object) -> str:
    """Return the architecture of a GGUF that states one and names a tokenizer, where the stated is another family's."""
    return _BORROWED.get(tokenizer, stated) if isinstance(tokenizer, str) else stated


def missing_part(architecture: str) -> str:
    """Return what an architecture has that the engine does not compute; empty: it is not known here."""
    return _BY_NAME.get(architecture, "")
