"""The layers of published models: what layers.py races at, as GGUF metadata.

Sizes are those of the models' config.json; layers are cut to two to six of each kind, in the model's own order. Where
that file was not to be had, a comment names what states the sizes, and which keys rest on nothing published there.
Path: engine/layers.py -> SHAPES
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """An architecture with its metadata keys, and the repository whose config.json states them."""

    architecture: str
    keys: dict[str, Any]
    source: str
    depths: tuple[int, ...] = (512,)  # tokens before those whose decoding is timed
    peer_depth: int = 4096  # beyond it the peer is not timed: it would take an hour to get there
    peer_streams: int = 8  # with more the peer is not timed


COMMON = {"context_length": 20480, "attention.layer_norm_rms_epsilon": 1e-6}
DELTA = {
    **COMMON, "attention.head_count_kv": 2, "attention.key_length": 256, "attention.value_length": 256,
    "rope.freq_base": 1e7, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0],
    "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "full_attention_interval": 4, "block_count": 4,
}  # fmt: skip

SHAPES = {
    "qwen3-30b-a3b": Shape(
        "qwen3moe",
        {
            **COMMON, "block_count": 4, "embedding_length": 2048, "feed_forward_length": 6144,
            "attention.head_count": 32, "attention.head_count_kv": 4, "attention.key_length": 128,
            "attention.value_length": 128, "expert_count": 128, "expert_used_count": 8,
            "expert_feed_forward_length": 768, "rope.freq_base": 1e6,
        },
        "Qwen/Qwen3-30B-A3B",
    ),
    "gpt-oss-20b": Shape(
        "gpt-oss",
        {
            **COMMON, "block_count": 4, "embedding_length": 2880, "feed_forward_length": 2880,
            "attention.head_count": 64, "attention.head_count_kv": 8, "attention.key_length": 64,
            "attention.value_length": 64, "attention.sliding_window": 128, "expert_count": 32,
            "expert_used_count": 4, "expert_feed_forward_length": 2880, "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
        "openai/gpt-oss-20b",
    ),
    "deepseek-v2-lite": Shape(
        "deepseek2",
        {
            **COMMON, "block_count": 3, "embedding_length": 2048, "feed_forward_length": 10944,
            "attention.head_count": 16, "attention.head_count_kv": 1, "attention.key_length": 576,
            "attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
            "attention.kv_lora_rank": 512, "rope.dimension_count": 64, "rope.freq_base": 10000.0,
            "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
            "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_log_multiplier": 0.0707,
            "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
            "leading_dense_block_count": 1, "expert_count": 64, "expert_used_count": 6,
            "expert_shared_count": 2, "expert_feed_forward_length": 1408, "expert_weights_scale": 1.0,
            "expert_gating_func": 1,
            # V2's: llama.cpp takes a file without one for V2-Lite only if it has 27 layers.
            "attention.q_lora_rank": 1536,
        },
        "deepseek-ai/DeepSeek-V2-Lite",
        depths=(16, 4096, 16384),
    ),
    "qwen3.5-0.8b": Shape(
        "qwen35",
        {
            **DELTA, "embedding_length": 1024, "feed_forward_length": 3584, "attention.head_count": 8,
            "ssm.time_step_rank": 16, "ssm.inner_size": 2048,
        },
        "Qwen/Qwen3.5-0.8B",
    ),
    "qwen3.5-35b-a3b": Shape(
        "qwen35moe",
        {
            **DELTA, "embedding_length": 2048, "attention.head_count": 16, "ssm.time_step_rank": 32,
            "ssm.inner_size": 4096, "expert_count": 256, "expert_used_count": 8,
            "expert_feed_forward_length": 512, "expert_shared_feed_forward_length": 512,
        },
        "Qwen/Qwen3.5-35B-A3B",
    ),
    "nemotron-3-nano": Shape(
        "nemotron_h_moe",
        {
            **COMMON, "block_count": 6, "embedding_length": 2688, "attention.head_count": 32,
            "feed_forward_length": [0, 1856, 0, 1856, 0, 1856], "attention.head_count_kv": [0, 0, 0, 0, 2, 0],
            "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.key_length": 128, "attention.value_length": 128, "rope.dimension_count": 128,
            "rope.freq_base": 10000.0, "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 8,
            "ssm.inner_size": 4096, "ssm.time_step_rank": 64, "expert_count": 128, "expert_used_count": 6,
            "expert_group_count": 1, "expert_group_used_count": 1, "expert_feed_forward_length": 1856,
            "expert_shared_feed_forward_length": 3712, "expert_shared_count": 1, "expert_weights_norm": True,
            "expert_weights_scale": 2.5, "rope.scaling.finetuned": False,
        },
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    ),
    # By the table of its card ("H Tiny MoE": widths, heads, states, experts; copied in public repositories, read
    # 2026-11). The card does not state the four factors, ssm.conv_kernel and ssm.group_count: speed is the same with
    # other factors, and transformers' defaults stand for the last two.
    "granite-4.0-h-tiny": Shape(
        "granitehybrid",
        {
            **COMMON, "block_count": 4, "embedding_length": 1536, "feed_forward_length": 512,
            "attention.head_count": 12, "attention.head_count_kv": [0, 0, 4, 0], "rope.dimension_count": 128,
            "rope.scaling.finetuned": False, "attention.scale": 0.0078125, "embedding_scale": 12.0,
            "residual_scale": 0.22, "logit_scale": 6.0, "ssm.conv_kernel": 4, "ssm.state_size": 128,
            "ssm.group_count": 1, "ssm.inner_size": 3072, "ssm.time_step_rank": 48, "expert_count": 64,
            "expert_used_count": 6, "expert_shared_feed_forward_length": 1024,
        },
        "ibm-granite/granite-4.0-h-tiny",
    ),
    # By the table in transformers' docs/source/en/model_doc/falcon_h1.md (width, heads, states; read 2026-11), which
    # does not state feed_forward_length, ssm.conv_kernel, ssm.group_count and rope.freq_base: those are not published
    # there, and the kernel and groups are those of Falcon-H1-0.5B's config.json.
    "falcon-h1-1.5b": Shape(
        "falcon-h1",
        {
            **COMMON, "block_count": 3, "embedding_length": 2048, "feed_forward_length": 4096,
            "attention.head_count": 8, "attention.head_count_kv": 2, "attention.key_length": 128,
            "attention.value_length": 128, "rope.freq_base": 1e11, "ssm.conv_kernel": 4, "ssm.state_size": 256,
            "ssm.group_count": 1, "ssm.inner_size": 3072, "ssm.time_step_rank": 48,
        },
        "tiiuae/Falcon-H1-1.5B-Instruct",
    ),
    "falcon-mamba-7b": Shape(
        "mamba",
        {
            **COMMON, "block_count": 3, "embedding_length": 4096, "feed_forward_length": 0,
            "attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-5, "ssm.conv_kernel": 4,
            "ssm.inner_size": 8192, "ssm.state_size": 16, "ssm.time_step_rank": 256, "ssm.dt_b_c_rms": True,
        },
        "tiiuae/falcon-mamba-7b",
        peer_streams=1,  # llama.cpp (llama-cpp-python 0.3.36) ends with a segmentation fault
    ),
    "laguna-xs.2": Shape(
        "laguna",
        {
            **COMMON, "block_count": 4, "embedding_length": 2048, "feed_forward_length": 8192,
            "attention.head_count": [48, 64, 64, 64], "attention.head_count_kv": 8, "attention.key_length": 128,
            "attention.value_length": 128, "attention.sliding_window": 512, "rope.freq_base": 5e5,
            "rope.freq_base_swa": 1e4, "rope.dimension_count": 64, "rope.dimension_count_swa": 128,
            "expert_count": 256, "expert_used_count": 8, "expert_gating_func": 2,
            "expert_feed_forward_length": 512, "expert_shared_feed_forward_length": 512,
            "expert_weights_norm": True, "expert_weights_scale": 2.5, "leading_dense_block_count": 1,
        },
        "poolside/Laguna-XS.2",
    ),
    "lfm2-1.2b": Shape(
        "lfm2",
        {
            **COMMON, "block_count": 4, "embedding_length": 2048, "feed_forward_length": 8192,
            "attention.head_count": 32, "attention.head_count_kv": [0, 0, 8, 0], "rope.freq_base": 1e6,
            "shortconv.l_cache": 3, "attention.layer_norm_rms_epsilon": 1e-5,
        },
        "LiquidAI/LFM2-1.2B",
    ),
}  # fmt: skip
