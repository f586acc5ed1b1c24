"""Writes the tiny models of weights.py as real files: a safetensors directory, or a GGUF for llama.cpp.

Knows both formats' keys, names and tensor transforms; computes nothing. The GGUF side is checked against
llama.cpp itself by check_gguf.py, the safetensors side against transformers by make.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.vectors.weights import FAMILIES, VOCAB, expert_count, head_dim, tensors

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS, IM_START, IM_END = range(5)
UNUSED_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}  # never occur in UTF-8; their places hold the others
WORDS = ["\u0120t", "he", "in", "\u0120a", "er", "on", "re", "\u0120the"]
MERGES = ["\u0120 t", "h e", "i n", "\u0120 a", "e r", "o n", "r e", "\u0120t he"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Dtype = str | Callable[[str], str]


def vocabulary() -> list[str]:
    """List the 256 tokens as byte-level BPE spells them: special ones, each byte of UTF-8, eight words."""
    words = [_spell(b) for b in range(256) if b not in UNUSED_BYTES]
    tokens = [*SPECIAL, *words, *WORDS]
    assert len(tokens) == VOCAB and len(set(tokens)) == VOCAB
    return tokens


def _spell(byte: int) -> str:
    """Spell a byte as byte-level BPE does: printable Latin-1 as itself, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in plain:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in plain].index(byte))


# --- safetensors ---------------------------------------------------------------------------------


def write_safetensors(family: str, folder: Path | str, *, dtype: str = "F32", legacy: bool = False) -> Path:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files into `folder`.

    `dtype`: F32, F16 or BF16 (all exact). `legacy`: config.json with the keys of transformers 4
    (rope_theta, rope_scaling, ...), as most published models still have it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(family, legacy=legacy) | {"torch_dtype": _TORCH_NAMES[dtype]}
    _write_json(folder / "config.json", config)
    ids = {"bos_token_id": BOS, "eos_token_id": [EOS, IM_END], "pad_token_id": PAD}
    _write_json(
        folder / "generation_config.json",
        ids | {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
    )
    _write_json(folder / "tokenizer.json", tokenizer_json())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors(family), dtype))
    return folder


_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def hf_config(family: str, *, legacy: bool = False) -> dict[str, Any]:
    """Give the family's config.json as a dict, in transformers' 5.x keys or in the older ones."""
    config = {"architectures": [FAMILIES[family].architecture], **FAMILIES[family].config}
    if not legacy:
        return config
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 6
        del config["layer_types"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["rope_scaling"] = scaling if scaling["rope_type"] != "default" else None
    return config


def safetensors_bytes(weights: dict[str, np.ndarray], dtype: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, value in weights.items():
        raw = _float_bytes(value, dtype)
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _float_bytes(value: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":  # exact: the weights have no bits below
        return (value.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
    return value.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def tokenizer_json() -> dict[str, Any]:
    """Give the tokenizer.json of the tiny byte-level vocabulary (GPT-2's word splitter)."""
    added = [
        {"id": i, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocabulary())},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


# --- GGUF ----------------------------------------------------------------------------------------


def write_gguf(family: str, path: Path | str, *, dtype: Dtype = "F32") -> Path:
    """Write family `family` as one GGUF file.

    `dtype`: the type of every matrix (F32, F16, BF16, Q8_0 exact; Q4_0, Q4_1, Q5_0, Q5_1 rounded), or a
    function from a GGUF tensor name to a type. Vectors and routers are F32, as llama.cpp's converter has them. Raises
    ValueError for a family without a GGUF form.
    """
    arch = FAMILIES[family].gguf
    if not arch:
        raise ValueError(f"{family} has no GGUF form")
    pick = dtype if callable(dtype) else lambda _name: dtype
    writer = gguf.GGUFWriter(path, arch)
    _add_keys(writer, FAMILIES[family].config)
    _add_tokenizer(writer)
    for name, value in gguf_tensors(family).items():
        kind = gguf.GGMLQuantizationType[pick(name) if value.ndim > 1 and "gate_inp" not in name else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _add_keys(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_name(f"tiny random {config['model_type']}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config["model_type"] in ("llama", "mistral", "mixtral"):
        writer.add_rope_dimension_count(head_dim(config))
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    if "num_experts_per_tok" in config:
        _add_experts(writer, config)
    _add_rope(writer, config["rope_parameters"])


def _add_experts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_expert_count(expert_count(config))
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _add_rope(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    if "full_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    writer.add_token_types([control if i < len(SPECIAL) else normal for i in range(VOCAB)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_EXPERT = re.compile(r"(model\.layers\.\d+)\.\w+\.experts\.\d+\.(\w+)\.weight")
_EXPERT_NAMES = {
    "gate_proj": "gate",
    "w1": "gate",
    "up_proj": "up",
    "w3": "up",
    "down_proj": "down",
    "w2": "down",
}
_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_tensors(family: str) -> dict[str, np.ndarray]:
    """Give the family's float32 tensors under GGUF names, transformed as llama.cpp's converter does it.

    `llama`: rows of q and k permuted from halves to adjacent pairs. `gemma3`: 1 added to every norm.
    llama3 rope scaling: its divisors as the tensor rope_freqs.weight. Experts are stacked; what is one row is a vector.
    """
    config, arch = FAMILIES[family].config, FAMILIES[family].gguf
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    out: dict[str, np.ndarray] = {}
    apart: dict[str, list[np.ndarray]] = {}
    for name, value in tensors(family).items():
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            value = _to_adjacent_pairs(value, heads[name.split("_proj")[0][-1]])
        if arch == "gemma3" and name.endswith("norm.weight"):
            value = value + np.float32(1)
        if _EXPERT.fullmatch(name):
            apart.setdefault(_gguf_name(name, arch), []).append(value)
        out[_gguf_name(name, arch)] = value[0] if len(value) == 1 else value
    out |= {name: np.stack(each) for name, each in apart.items()}
    if config["rope_parameters"].get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(config["rope_parameters"], head_dim(config))
    return out


def _gguf_name(name: str, arch: str) -> str:
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if expert := _EXPERT.fullmatch(name):
        return f"blk.{expert[1].split('.')[2]}.ffn_{_EXPERT_NAMES[expert[2]]}_exps.weight"
    stem, suffix = name.rsplit(".", 1)
    if stem in fixed:
        return f"{fixed[stem]}.{suffix}"
    _, _, layer, part = stem.split(".", 3)
    names = _GGUF_NAMES | (_GEMMA_NAMES if arch == "gemma3" else {})
    return f"blk.{layer}.{names[part]}.{suffix}"


def _to_adjacent_pairs(value: np.ndarray, heads: int) -> np.ndarray:
    """Reorder each head's rows from (first half, second half) to pairs that rotate together."""
    halves = value.reshape(heads, 2, -1, *value.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)


def llama3_divisors(rope: dict[str, Any], width: int) -> np.ndarray:
    """Compute what each pair's frequency is divided by under llama3 scaling: float32 [width / 2].

    Wavelengths shorter than original/high stay, those longer than original/low are stretched by `factor`,
    and between them the frequency is blended linearly in original/wavelength.
    """
    frequencies = rope["rope_theta"] ** -(np.arange(0, width, 2) / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (kept + (1.0 - kept) / factor)).astype(np.float32)
