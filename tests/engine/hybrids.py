"""Tiny random hybrids and models of latent attention, written from what their families declare; unjudged by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from freehold.run.formats.fields import Fields
from freehold.run.models.families import registered
from freehold.run.models.family import Cut, TensorSpec, renamed
from freehold.run.models.load import LoadedModel, load_model
from tests.vectors.files import safetensors_bytes

COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "rms_norm_eps": 1e-6,
    "model_type": "deepseek_v3",
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "latent": LATENT,
    "sparse": LATENT
    | {
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "index_topk": 40,
        "index_n_heads": 16,
        "index_head_dim": 32,
    },
    "lfm2": COMMON
    | {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "rope_theta": 1e6,
    },
    "mamba2": COMMON
    | {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 2,
        "conv_kernel": 4,
    },
    "nemotron": COMMON
    | {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "ME*M",
        "head_dim": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 64,
        "moe_latent_size": 32,
        "routed_scaling_factor": 2.5,
    },
    "delta": COMMON
    | {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "num_hidden_layers": 3,
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "kda": COMMON
    | {
        "architectures": ["KimiLinearForCausalLM"],
        "rms_norm_eps": 1e-6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "num_experts": 8,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 32,
        "routed_scaling_factor": 2.5,
        "linear_attn_config": {
            "head_dim": 32,
            "num_heads": 2,
            "short_conv_kernel_size": 4,
            "kda_layers": [1, 3],
            "full_attn_layers": [2],
        },
    },
    "falcon": COMMON
    | {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "num_hidden_layers": 2,
        "mamba_d_ssm": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "key_multiplier": 0.5,
    },
    "jamba": COMMON
    | {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_d_state": 16,
        "mamba_dt_rank": 32,
    },
    "gemma4": COMMON
    | {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 256,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
    },
    "cohere2": COMMON
    | {
        "architectures": ["Cohere2ForCausalLM"],
        "model_type": "cohere2",
        "sliding_window": 8,
        "logit_scale": 0.5,
    },
}


def hybrid(name: str, folder: Path) -> LoadedModel:
    """Write a tiny model of a configuration and load it."""
    config = CONFIGS[name]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(_weights(config), "F32"))
    return load_model(folder, threads=1, name=f"tiny-{name}", digest=name * 8)


def _weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    family = next(f for f in registered() if set(config["architectures"]) & set(f.hf_classes))
    network = family.network(family.config_from_hf(Fields(config)))
    stored = _stored("", renamed(network.ends.tensors(), family.names))
    for i, layer in enumerate(network.layers):
        stored |= _stored(f"{family.hf_layers}.{i}.", layer.tensors())
    rng = np.random.default_rng(5)
    return {name: _drawn(name, shape, rng) for name, shape in sorted(stored.items())}


def _stored(prefix: str, specs: dict[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for spec in specs.values():
        stored = spec.hf[0]
        name, shape = (stored.name, stored.shape) if isinstance(stored, Cut) else (stored, spec.shape)
        assert isinstance(name, str)
        if "{e}" in name:
            found |= {prefix + name.replace("{e}", str(e)): shape[1:] for e in range(shape[0])}
        elif not spec.default:
            found[prefix + name] = shape
    return found


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("dt_bias"):  # steps of a tenth, so that states last
        return values - 2
    if len(shape) == 1:  # a norm
        return 1 + values * np.float32(0.1)
    if "embed" in name:
        return values
    return values * np.float32(2 / np.sqrt(shape[-1]))
