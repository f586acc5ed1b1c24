"""What a sequence keeps in memory, against products written out by hand from each model's configuration.

One model of every architecture whose layers the catalogue knows; bytes at 16 bits. MiB = 2^20.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base import catalog
from freehold.base.catalog.model import Model
from freehold.base.layers import LayerSpec

NOWHERE = Path("/nowhere/catalogue.toml")
DEEP = 1 << 40
# id -> bytes of the first token; of a token after every window is full; of the state
GQA = {
    "meta-llama/Llama-3.1-8B-Instruct": 32 * 8 * (128 + 128) * 2,
    "meta-llama/Llama-3.1-405B-Instruct": 126 * 8 * (128 + 128) * 2,
    # 8 of its 40 layers attend to the image alone
    "meta-llama/Llama-3.2-11B-Vision-Instruct": 32 * 8 * (128 + 128) * 2,
    "meta-llama/Llama-2-7b-chat-hf": 32 * 32 * (128 + 128) * 2,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 30 * 3 * (64 + 64) * 2,
    "mistralai/Ministral-3-14B-Instruct-2512": 40 * 8 * 256 * 2,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 32 * 8 * 256 * 2,
    "databricks/dbrx-instruct": 40 * 8 * 256 * 2,
    "mosaicml/mpt-30b": 48 * 64 * (112 + 112) * 2,
    "baidu/ERNIE-4.5-0.3B-PT": 18 * 2 * 256 * 2,
    "baidu/ERNIE-4.5-300B-A47B-PT": 54 * 8 * 256 * 2,
    "tiiuae/falcon-40b": 60 * 8 * (64 + 64) * 2,
    "facebook/opt-6.7b": 32 * 32 * 256 * 2,
    "microsoft/phi-2": 32 * 32 * (80 + 80) * 2,
    "google/gemma-7b-it": 28 * 16 * (256 + 256) * 2,
    "zai-org/chatglm2-6b": 28 * 2 * 256 * 2,
    "Qwen/Qwen2.5-VL-7B-Instruct": 28 * 4 * 256 * 2,
    "nvidia/Nemotron-Mini-4B-Instruct": 32 * 8 * 256 * 2,
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": 24 * 2 * 128 * 2,
    "Qwen/Qwen2.5-72B-Instruct": 80 * 8 * 256 * 2,
    "Qwen/Qwen1.5-MoE-A2.7B-Chat": 24 * 16 * 256 * 2,
    "Qwen/Qwen3-8B": 36 * 8 * 256 * 2,
    "CohereLabs/aya-expanse-8b": 32 * 8 * 256 * 2,
    "jinaai/jina-embeddings-v5-text-small": 28 * 8 * 256 * 2,
    "Qwen/Qwen3-235B-A22B": 94 * 4 * 256 * 2,
    "microsoft/phi-4": 40 * 10 * 256 * 2,
    "microsoft/Phi-3.5-MoE-instruct": 32 * 8 * 256 * 2,
    "allenai/OLMo-7B-Instruct-hf": 32 * 32 * 256 * 2,
    "allenai/OLMo-2-1124-13B-Instruct": 40 * 40 * 256 * 2,
    "allenai/OLMoE-1B-7B-0924-Instruct": 16 * 16 * 256 * 2,
    "zai-org/GLM-4.5-Air": 46 * 8 * 256 * 2,
    "MiniMaxAI/MiniMax-M2": 62 * 8 * 256 * 2,
    "tencent/Hy3-preview": 80 * 8 * 256 * 2,
    "ibm-granite/granite-4.1-30b": 64 * 8 * 256 * 2,
    "HuggingFaceTB/SmolLM3-3B": 36 * 4 * 256 * 2,
    "xai-org/grok-2": 64 * 8 * 256 * 2,
    "ByteDance-Seed/Seed-OSS-36B-Instruct": 64 * 8 * 256 * 2,
    # 57 of 60 layers choose blocks by one index key of 128 besides
    "MiniMaxAI/MiniMax-M3": (60 * 4 * 256 + 57 * 128) * 2,
    "meta-models/Muse-Spark-Open-816B-A42B": 62 * 16 * (64 + 64) * 2,
    "mistralai/Mistral-Medium-3.5-128B": 88 * 8 * 256 * 2,
    # linear attention on 3 layers of 4, of a state whose size is not known
    "upstage/Solar-Open2-250B": 12 * 8 * 256 * 2,
    # attention on 49 blocks of 80, by its block_configs
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": 49 * 8 * 256 * 2,
    "sentence-transformers/all-MiniLM-L6-v2": 0,
    "openai/whisper-base": 6 * 8 * (64 + 64) * 2,
}
# full layers, window layers; both keep the first token, only the full ones a late one
SLIDING = {
    "mistralai/Mistral-7B-Instruct-v0.1": (0, 32 * 8 * 256 * 2),
    "openai/gpt-oss-20b": (12 * 8 * (64 + 64) * 2, 12 * 8 * (64 + 64) * 2),
    "google/gemma-2-9b-it": (21 * 8 * 512 * 2, 21 * 8 * 512 * 2),
    "google/gemma-3-27b-it": (10 * 16 * 256 * 2, 52 * 16 * 256 * 2),
    "google/gemma-3-270m": (3 * 1 * 512 * 2, 15 * 1 * 512 * 2),
    # globals of 512 with keys and values apart; the last 18 of E4B's 42 layers keep nothing of their own
    "google/gemma-4-31B-it": (10 * 4 * (512 + 512) * 2, 50 * 16 * (256 + 256) * 2),
    "google/gemma-4-E4B-it": (4 * 2 * (512 + 512) * 2, 20 * 2 * (256 + 256) * 2),
    "LGAI-EXAONE/EXAONE-4.0-32B": (16 * 8 * 256 * 2, 48 * 8 * 256 * 2),
    "CohereLabs/command-a-reasoning-08-2025": (16 * 8 * 256 * 2, 48 * 8 * 256 * 2),
    # the last 15 of its 35 layers read what earlier ones keep
    "google/gemma-3n-E4B-it": (4 * 2 * 512 * 2, 16 * 2 * 512 * 2),
    "allenai/Olmo-3-32B-Think": (16 * 8 * 256 * 2, 48 * 8 * 256 * 2),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (12 * 8 * 256 * 2, 36 * 8 * 256 * 2),
    "meta-models/Muse-Glimmer-30B": (13 * 2 * 256 * 2, 39 * 2 * 256 * 2),
    "poolside/Laguna-XS.2": (10 * 8 * 256 * 2, 30 * 8 * 256 * 2),
    "CohereLabs/command-a-plus-05-2026-w4a4": (8 * 8 * 256 * 2, 24 * 8 * 256 * 2),
    # keys of 192, values of 128; 4 heads globally, 8 in windows
    "XiaomiMiMo/MiMo-V2-Flash": (9 * 4 * (192 + 128) * 2, 39 * 8 * (192 + 128) * 2),
    "XiaomiMiMo/MiMo-V2.5-Pro": (10 * 8 * (192 + 128) * 2, 60 * 8 * (192 + 128) * 2),
    "stepfun-ai/Step-3.5-Flash": (12 * 8 * 256 * 2, 33 * 8 * 256 * 2),
    "arcee-ai/Trinity-Large-Base": (15 * 8 * 256 * 2, 45 * 8 * 256 * 2),
    "thinkingmachines/Inkling": (11 * 8 * 256 * 2, 55 * 16 * 256 * 2),
}
# one latent vector and one rotated key part per token and layer, whatever the number of heads
MLA = {
    "deepseek-ai/DeepSeek-V3": 61 * (512 + 64) * 2,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 27 * (512 + 64) * 2,
    "mistralai/Mistral-Large-3-675B-Instruct-2512": 61 * (512 + 64) * 2,
    "mistralai/Mistral-Small-4-119B-2603": 36 * (256 + 64) * 2,
    "mistralai/Leanstral-1.5-119B-A6B": 36 * (256 + 64) * 2,
    "moonshotai/Kimi-K2-Instruct": 61 * (512 + 64) * 2,
    "zai-org/GLM-4.7-Flash": 47 * (512 + 64) * 2,
    # layers share caches in pairs, so this is an upper bound, as its note says
    "mistralai/Mistral-Large-4-1T-A52B": 72 * (512 + 64) * 2,
    # the sparse ones keep an index key of 128 besides
    "deepseek-ai/DeepSeek-V3.2": 61 * (512 + 64 + 128) * 2,
    "zai-org/GLM-5": 78 * (512 + 64 + 128) * 2,
}
# per token; then state in f32 (4 bytes) and the last 3 inputs of the convolutions in 16 bits (2 bytes)
DELTANET = {
    # attention on every 4th layer; state: value heads x 128 x 128; convolution over q, k (16 heads each) and v
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (
        12 * 2 * 512 * 2,
        36 * (32 * 128 * 128 * 4 + 3 * (4096 + 32 * 128) * 2),
    ),
    "Qwen/Qwen3.5-0.8B": (6 * 2 * 512 * 2, 18 * (16 * 128 * 128 * 4 + 3 * (4096 + 16 * 128) * 2)),
    "Qwen/Qwen3.5-27B": (16 * 4 * 512 * 2, 48 * (48 * 128 * 128 * 4 + 3 * (4096 + 48 * 128) * 2)),
    "Qwen/Qwen3.5-397B-A17B": (15 * 2 * 512 * 2, 45 * (64 * 128 * 128 * 4 + 3 * (4096 + 64 * 128) * 2)),
    "Qwen/Qwen3.8-Flash-Next": (12 * 2 * 512 * 2, 36 * (48 * 128 * 128 * 4 + 3 * (4096 + 48 * 128) * 2)),
    "allenai/Olmo-Hybrid-7B": (8 * 30 * 256 * 2, 24 * (30 * 96 * 192 * 4 + 3 * (2 * 30 * 96 + 30 * 192) * 2)),
    # KDA: heads x 128 x 128, three convolutions of heads x 128; MLA on the other layers
    "moonshotai/Kimi-Linear-48B-A3B-Instruct": (
        7 * 576 * 2,
        20 * (32 * 128 * 128 * 4 + 3 * 3 * 32 * 128 * 2),
    ),
    "moonshotai/Kimi-K3": (24 * 576 * 2, 69 * (96 * 128 * 128 * 4 + 3 * 3 * 96 * 128 * 2)),
    "zai-org/GLM-5.3-Flash": (11 * (512 + 128 // 16) * 2, 34 * (64 * 128 * 128 * 4 + 3 * 3 * 64 * 128 * 2)),
    "inclusionAI/Ling-3.0-flash": (7 * 576 * 2, 35 * (32 * 128 * 128 * 4 + 3 * 3 * 32 * 128 * 2)),
    # lightning attention: heads x 128 x 128, no convolution; MLA on every 8th layer
    "inclusionAI/Ling-2.6-1T": (10 * 576 * 2, 70 * 64 * 128 * 128 * 4),
    # gated short convolutions of width 2048 and kernel 3
    "LiquidAI/LFM2-1.2B": (6 * 8 * 128 * 2, 10 * 2 * 2048 * 2),
    "LiquidAI/LFM2.5-1.2B-Thinking": (6 * 8 * 128 * 2, 10 * 2 * 2048 * 2),
    "LiquidAI/LFM2.5-8B-A1B": (6 * 8 * 128 * 2, 18 * 2 * 2048 * 2),
}
# once its windows of 128 tokens are full: layers whose entries stand for 4 tokens, with an index key; and for 128
COMPRESSED = {
    "deepseek-ai/DeepSeek-V4-Flash": (21 * (512 + 128) / 4 + 20 * 512 / 128) * 2,
    "deepseek-ai/DeepSeek-V4-Pro": (30 * (512 + 128) / 4 + 31 * 512 / 128) * 2,
}
MAMBA = {
    # Mamba 1: twice the width, 16 values each; the last 3 inputs of its convolution
    "ai21labs/Jamba-v0.1": (4 * 8 * 256 * 2, 28 * (8192 * 16 * 4 + 3 * 8192 * 2)),
    "mistralai/Mamba-Codestral-7B-v0.1": (0, 64 * (128 * 64 * 128 * 4 + 3 * (8192 + 2 * 8 * 128) * 2)),
    # lightning attention: 64 heads x 128 x 128, no convolution
    "MiniMaxAI/MiniMax-M1-80k": (10 * 8 * 256 * 2, 70 * 64 * 128 * 128 * 4),
    # state: heads x head size x 128; convolution over x and over B and C of 8 groups
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": (
        4 * 8 * 256 * 2,
        27 * (128 * 80 * 128 * 4 + 3 * (128 * 80 + 2 * 8 * 128) * 2),
    ),
    # one group
    "ibm-granite/granite-4.0-h-tiny": (
        4 * 4 * 256 * 2,
        36 * (48 * 64 * 128 * 4 + 3 * (48 * 64 + 2 * 128) * 2),
    ),
    "ibm-granite/granite-4.0-h-small": (
        4 * 8 * 256 * 2,
        36 * (128 * 64 * 128 * 4 + 3 * (128 * 64 + 2 * 128) * 2),
    ),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (
        6 * 2 * 256 * 2,
        23 * (64 * 64 * 128 * 4 + 3 * (64 * 64 + 2 * 8 * 128) * 2),
    ),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16": (
        8 * 2 * 256 * 2,
        40 * (128 * 64 * 128 * 4 + 3 * (128 * 64 + 2 * 8 * 128) * 2),
    ),
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4": (
        12 * 2 * 256 * 2,
        48 * (256 * 64 * 128 * 4 + 3 * (256 * 64 + 2 * 8 * 128) * 2),
    ),
}


def known(model_id: str) -> Model:
    return catalog.model(model_id, NOWHERE)


@pytest.mark.parametrize(("model_id", "expected"), (GQA | MLA).items(), ids=list(GQA | MLA))
def test_attention_costs_the_same_for_every_token(model_id: str, expected: int):
    m = known(model_id)
    assert m.bytes_per_token(0) == m.bytes_per_token(DEEP) == expected
    assert m.cache_bytes(1000) == 1000 * expected and m.state_bytes == 0


@pytest.mark.parametrize(("model_id", "expected"), SLIDING.items(), ids=list(SLIDING))
def test_a_full_window_costs_nothing_more(model_id: str, expected: tuple[int, int]):
    full, windowed = expected
    m = known(model_id)
    assert m.bytes_per_token(0) == full + windowed
    assert m.bytes_per_token(DEEP) == full
    (window,) = {g.window for g in m.layers if g.kind == "window"}
    assert m.cache_bytes(4 * window) == 4 * window * full + window * windowed


@pytest.mark.parametrize(("model_id", "expected"), (DELTANET | MAMBA).items(), ids=list(DELTANET | MAMBA))
def test_recurrent_layers_cost_a_state_and_no_tokens(model_id: str, expected: tuple[int, int]):
    per_token, state = expected
    m = known(model_id)
    assert m.bytes_per_token(0) == m.bytes_per_token(DEEP) == per_token
    assert m.state_known and m.state_bytes == state


@pytest.mark.parametrize(("model_id", "expected"), COMPRESSED.items(), ids=list(COMPRESSED))
def test_compressed_layers_keep_an_entry_for_several_tokens_and_a_window_besides(
    model_id: str, expected: float
):
    m = known(model_id)
    assert m.bytes_per_token(DEEP) == pytest.approx(expected, abs=1)
    layers = sum(g.count for g in m.layers)
    assert m.cache_bytes(1 << 20) == pytest.approx((1 << 20) * expected + layers * 128 * 512 * 2, rel=1e-6)


def test_every_architecture_with_known_layers_is_checked_by_hand():
    checked = {known(i).architecture or i for i in GQA | MLA | SLIDING | COMPRESSED | DELTANET | MAMBA}
    keeping = [m for m in catalog.models(NOWHERE) if any(g.kind != "plain" for g in m.layers)]
    present = {m.architecture or m.id for m in keeping}
    assert present <= checked


def test_mla_keeps_less_than_a_tenth_of_what_its_heads_would_need():
    """An article of April 2026 says about 90 % less for DeepSeek-V2; against its own 128 heads it is 98 %."""
    latent = known("deepseek-ai/DeepSeek-V2-Chat").bytes_per_token(0)
    heads = 60 * 128 * ((128 + 64) + 128) * 2
    assert 0.01 < latent / heads < 0.1


def test_a_narrower_cache_costs_in_proportion():
    m = known("Qwen/Qwen3-8B")
    assert m.cache_bytes(4096, 1) * 2 == m.cache_bytes(4096)
    assert m.cache_bytes(4096, 1.125) == round(4096 * 36 * 8 * 256 * 1.125)


def test_values_that_are_read_out_of_the_keys_are_counted_once():
    assert LayerSpec("full", 1, kv_heads=1, head_dim=512, value_dim=0).values_per_token == 512


def test_a_published_figure_stands_in_where_no_layer_is_known():
    m = known("tencent/Hy4-preview")
    assert m.layers == () and m.cache_known and m.bytes_per_token(0) == 89907
    assert not Model("a/b", "", "", "", m.checked, ("s",)).cache_known
