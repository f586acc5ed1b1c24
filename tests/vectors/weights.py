"""Tiny random models, one per family variant: configurations and weights, from NumPy alone.

Knows the Hugging Face names and shapes of every tensor; knows no file format and no forward pass.
Path: FAMILIES[name] -> tensors(name) -> files.py writes them, make.py runs them through transformers.

A matrix element is an integer in [-127, 127] times a power of two, and the largest of each 32 along a row
is exactly 127. So the same values survive F32, F16, BF16 and Q8_0 without any rounding: one golden file
judges a reader of each of the four. Vectors are multiples of 2^-7 for the same reason. Only PCG64's raw
words are drawn, whose stream NumPy guarantees across versions; the rest is integer arithmetic.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

VOCAB = 256
LENGTH = 48  # tokens of a golden sequence; longer than every sliding window below
PREFILL = 20  # tokens of the first call in the second path; the others follow one by one
BLOCK = 32
LOGIT_STD = 1.5


@dataclass(frozen=True)
class Family:
    """A model to be judged: `seed` draws its weights, `config` is its config.json (transformers 5.x)."""

    seed: int
    architecture: str  # transformers' class, as in config.json's "architectures"
    gguf: str  # general.architecture; empty where a GGUF cannot express the configuration
    config: dict[str, Any]


def _rope(theta: float = 10000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def _config(model_type: str, **fields: Any) -> dict[str, Any]:
    common = {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "rope_parameters": _rope(),
    }
    return {**common, **fields}


def _gemma3(scalar: float, **full_rope: Any) -> dict[str, Any]:
    layers = 7  # five local, one global, and the first of the next group
    return _config(
        "gemma3_text",
        num_hidden_layers=layers,
        head_dim=24,  # 4 x 24 = 96: wider than hidden, as in the real 270m
        query_pre_attn_scalar=scalar,
        sliding_window=8,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        rope_parameters={
            "full_attention": _rope(1e6, **full_rope),
            "sliding_attention": _rope(1e4),
        },
    )


def _qwen3moe(dense: list[int]) -> dict[str, Any]:
    return _config(
        "qwen3_moe",
        head_dim=24,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=dense,
        rope_parameters=_rope(1e6),
    )


_LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)


def _yarn(original: int) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": original}


FAMILIES: dict[str, Family] = {
    "llama": Family(11, "LlamaForCausalLM", "llama", _config("llama")),
    "llama-headdim": Family(12, "LlamaForCausalLM", "llama", _config("llama", head_dim=24)),
    "llama3-rope": Family(
        13,
        "LlamaForCausalLM",
        "llama",
        _config("llama", rope_parameters=_rope(5e5, **_LLAMA3), tie_word_embeddings=True),
    ),
    "llama-linear": Family(
        14,
        "LlamaForCausalLM",
        "llama",
        _config("llama", rope_parameters=_rope(rope_type="linear", factor=2.0)),
    ),
    "llama-yarn": Family(
        15,
        "LlamaForCausalLM",
        "llama",
        _config("llama", rope_parameters=_rope(**_yarn(32)), max_position_embeddings=128),
    ),
    "mistral": Family(21, "MistralForCausalLM", "llama", _config("mistral", sliding_window=8)),
    "qwen2": Family(
        31,
        "Qwen2ForCausalLM",
        "qwen2",
        _config("qwen2", rope_parameters=_rope(1e6), tie_word_embeddings=True),
    ),
    "qwen2-yarn": Family(
        32,
        "Qwen2ForCausalLM",
        "qwen2",
        _config("qwen2", rope_parameters=_rope(1e6, **_yarn(64)), max_position_embeddings=256),
    ),
    "qwen3": Family(
        41, "Qwen3ForCausalLM", "qwen3", _config("qwen3", head_dim=24, rope_parameters=_rope(1e6))
    ),
    "gemma3": Family(51, "Gemma3ForCausalLM", "gemma3", _gemma3(24)),
    "gemma3-linear": Family(52, "Gemma3ForCausalLM", "gemma3", _gemma3(24, rope_type="linear", factor=8.0)),
    "mixtral": Family(
        61,
        "MixtralForCausalLM",
        "llama",
        _config("mixtral", num_local_experts=4, num_experts_per_tok=2, rope_parameters=_rope(1e6)),
    ),
    "qwen2moe": Family(
        62,
        "Qwen2MoeForCausalLM",
        "qwen2moe",
        _config(
            "qwen2_moe",
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
            norm_topk_prob=False,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            rope_parameters=_rope(1e6),
        ),
    ),
    "qwen3moe": Family(63, "Qwen3MoeForCausalLM", "qwen3moe", _qwen3moe([])),
    # A GGUF of this architecture has experts in every layer.
    "qwen3moe-mixed": Family(64, "Qwen3MoeForCausalLM", "", _qwen3moe([1])),
    "olmoe": Family(
        65,
        "OlmoeForCausalLM",
        "olmoe",
        _config(
            "olmoe",
            num_key_value_heads=4,  # llama.cpp loads no other
            intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            clip_qkv=None,
            rms_norm_eps=1e-5,
        ),
    ),
    # A GGUF has no key for the attention scale of gemma3, so this one exists as safetensors only.
    "gemma3-scalar": Family(53, "Gemma3ForCausalLM", "", _gemma3(40)),
}


def head_dim(config: dict[str, Any]) -> int:
    """Width of one attention head, given or derived."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """List the tensors of family `name`: Hugging Face name -> shape, in file order."""
    config = FAMILIES[name].config
    hidden = config["hidden_size"]
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, hidden)}
    for i in range(config["num_hidden_layers"]):
        out |= {f"model.layers.{i}.{part}": shape for part, shape in _layer_shapes(config, i).items()}
    out["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = (VOCAB, hidden)
    return out


def _layer_shapes(config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    hidden, kind = config["hidden_size"], config["model_type"]
    q = config["num_attention_heads"] * head_dim(config)
    kv = config["num_key_value_heads"] * head_dim(config)
    out: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
    }
    out |= _mlp_shapes(config) if is_dense(config, layer) else _expert_shapes(config)
    if kind in ("qwen2", "qwen2_moe"):
        out |= {f"self_attn.{p}_proj.bias": (n,) for p, n in (("q", q), ("k", kv), ("v", kv))}
    if kind == "olmoe":
        out |= {f"self_attn.{p}_norm.weight": (n,) for p, n in (("q", q), ("k", kv))}
    if kind in ("qwen3", "qwen3_moe", "gemma3_text"):
        out |= {f"self_attn.{p}_norm.weight": (head_dim(config),) for p in "qk"}
    if kind == "gemma3_text":
        out |= {f"{p}_feedforward_layernorm.weight": (hidden,) for p in ("pre", "post")}
    return out


def is_dense(config: dict[str, Any], layer: int) -> bool:
    """Say whether a layer has one MLP and no experts."""
    return "num_experts_per_tok" not in config or layer in config.get("mlp_only_layers", ())


def expert_count(config: dict[str, Any]) -> int:
    """Number of experts, under whichever key the family states it."""
    return config.get("num_experts", config.get("num_local_experts", 0))


def _mlp_shapes(config: dict[str, Any], under: str = "mlp", inner: int = 0) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], inner or config["intermediate_size"]
    return {
        f"{under}.gate_proj.weight": (inner, hidden),
        f"{under}.up_proj.weight": (inner, hidden),
        f"{under}.down_proj.weight": (hidden, inner),
    }


def _expert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Router, then each expert as published: w1, w3 and w2 are Mixtral's gate, up and down."""
    hidden, experts = config["hidden_size"], expert_count(config)
    inner = config.get("moe_intermediate_size", config["intermediate_size"])
    block = "block_sparse_moe" if config["model_type"] == "mixtral" else "mlp"
    out: dict[str, tuple[int, ...]] = {f"{block}.gate.weight": (experts, hidden)}
    for e in range(experts):
        for name, shape in _mlp_shapes(config, f"{block}.experts.{e}", inner).items():
            for plain, own in MIXTRAL.items() if block != "mlp" else ():
                name = name.replace(plain, own)
            out[name] = shape
    if shared := config.get("shared_expert_intermediate_size"):
        out |= _mlp_shapes(config, "mlp.shared_expert", shared)
        out["mlp.shared_expert_gate.weight"] = (1, hidden)
    return out


MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def tensors(name: str) -> dict[str, np.ndarray]:
    """Make the weights of family `name`: Hugging Face name -> float32 array, the same on every machine."""
    family = FAMILIES[name]
    zero_centred = family.config["model_type"] == "gemma3_text"
    return {key: tensor(family.seed, key, shape, zero_centred) for key, shape in shapes(name).items()}


def tensor(seed: int, key: str, shape: tuple[int, ...], zero_centred: bool) -> np.ndarray:
    """Draw one tensor: a matrix, a bias or the weight of a norm, by its name and shape."""
    noise = _noise(seed, key, math.prod(shape)).reshape(shape)
    if len(shape) == 2:
        return _matrix(noise)
    if key.endswith("bias"):
        return _on_grid(0.3 * noise)
    return _on_grid(0.15 * noise + (0.0 if zero_centred else 1.0))


def _noise(seed: int, key: str, count: int) -> np.ndarray:
    """Draw `count` nearly normal float64 values of unit variance: the sum of four 16-bit words."""
    words = np.random.PCG64([seed, zlib.crc32(key.encode())]).random_raw(count)
    lanes = sum(((words >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48))
    return (np.asarray(lanes) - 2 * 65535) / (65536 * math.sqrt(4 / 12))


def _matrix(noise: np.ndarray) -> np.ndarray:
    """Scale rows to a standard deviation near 1.5/sqrt(K), on a grid that Q8_0, F16 and BF16 share."""
    target = LOGIT_STD / math.sqrt(noise.shape[1])
    step = 2.0 ** math.floor(math.log2(target / 32))  # a deviation of 32 to 64 steps: few reach 127
    blocks = np.clip(np.rint(noise * (target / step)), -126, 126).reshape(-1, BLOCK)
    top = np.abs(blocks).argmax(axis=1)
    rows = np.arange(len(blocks))
    blocks[rows, top] = np.where(blocks[rows, top] < 0, -127.0, 127.0)
    return (blocks * step).reshape(noise.shape).astype(np.float32)


def _on_grid(values: np.ndarray) -> np.ndarray:
    return (np.rint(values * 128) / 128).astype(np.float32)


def digest(name: str) -> int:
    """Sum up the family's weights as a CRC-32, so that a drifted generator is not taken for a wrong engine."""
    crc = 0
    for key, value in tensors(name).items():
        crc = zlib.crc32(key.encode() + value.astype("<f4").tobytes(), crc)
    return crc


def token_ids(name: str) -> np.ndarray:
    """Draw the family's golden sequence: int64 [LENGTH], no special tokens."""
    words = np.random.PCG64([FAMILIES[name].seed, zlib.crc32(b"ids")]).random_raw(LENGTH)
    return (words % np.uint64(VOCAB - 5)).astype(np.int64) + 5
