"""Writes a Whisper as whisper.cpp's files hold it, from tensors under the names of safetensors; no test."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x67676D6C
COLUMNS = 201
SIZES = ("vocab_size", "max_source_positions", "d_model", "encoder_attention_heads", "encoder_layers")
SIZES += ("max_target_positions", "d_model", "decoder_attention_heads", "decoder_layers", "num_mel_bins")
_RENAMED = {
    "embed_positions.weight": "positional_embedding",
    "embed_tokens": "token_embedding",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln",
    "encoder_attn": "cross_attn",
    "self_attn": "attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    ".layers.": ".blocks.",
}


def name_of(name: str) -> str:
    """Return what whisper.cpp calls a tensor."""
    name = name.removeprefix("model.")
    name = re.sub(r"^encoder\.layer_norm", "encoder.ln_post", name)
    name = re.sub(r"^decoder\.layer_norm", "decoder.ln", name)
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def ggml_bytes(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], words: Sequence[bytes]) -> bytes:
    """Join sizes, tokens and tensors: matrices as float16, vectors and positions as float32."""
    sizes = [config[name] for name in SIZES]
    parts = [struct.pack("<12i", MAGIC, *sizes, 1), struct.pack("<2i", config["num_mel_bins"], COLUMNS)]
    parts += [bytes(4 * config["num_mel_bins"] * COLUMNS), struct.pack("<i", len(words))]
    parts += [struct.pack("<i", len(word)) + word for word in words]
    for name, values in tensors.items():
        values = values[:, None] if re.search(r"conv\d\.bias", name) else values
        halves = values.ndim > 1 and "embed_positions" not in name and not name.endswith("bias")
        stored = name_of(name).encode()
        head = struct.pack("<3i", values.ndim, len(stored), int(halves))
        parts += [head, struct.pack(f"<{values.ndim}i", *reversed(values.shape)), stored]
        parts.append(values.astype("<f2" if halves else "<f4").tobytes())
    return b"".join(parts)


def write_ggml(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], words: Sequence[bytes]
) -> Path:
    """Write the file."""
    path.write_bytes(ggml_bytes(config, tensors, words))
    return path
