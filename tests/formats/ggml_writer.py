"""Writes a Whisper as whisper.cpp's files hold it, from tensors under the names of safetensors; no test."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from freehold import _native as native
from freehold.adapt.quantize.encoding import encode_rows
from freehold.run.formats import QuantType

# What the header calls a file whose matrices have a type; ggml's enum of file types.
FILE_TYPES = {QuantType.Q8_0: 7, QuantType.Q5_0: 8}
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


def ggml_bytes(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    words: Sequence[bytes],
    type: QuantType | None = None,
) -> bytes:
    """Join sizes, tokens and tensors: matrices as `type` or float16, vectors and positions as float32.

    As whisper.cpp's quantize writes it: convolutions stay float16, and the header's type has 1000 a version added.
    """
    sizes = [config[name] for name in SIZES]
    code = 1 if type is None else 2000 + FILE_TYPES[type]
    parts = [struct.pack("<12i", MAGIC, *sizes, code), struct.pack("<2i", config["num_mel_bins"], COLUMNS)]
    parts += [bytes(4 * config["num_mel_bins"] * COLUMNS), struct.pack("<i", len(words))]
    parts += [struct.pack("<i", len(word)) + word for word in words]
    for name, values in tensors.items():
        values = values[:, None] if re.search(r"conv\d\.bias", name) else values
        halves = values.ndim > 1 and "embed_positions" not in name and not name.endswith("bias")
        stored = name_of(name).encode()
        few = type if values.ndim == 2 and halves else None
        head = struct.pack("<3i", values.ndim, len(stored), int(halves) if few is None else few.value)
        parts += [head, struct.pack(f"<{values.ndim}i", *reversed(values.shape)), stored]
        parts.append(
            values.astype("<f2" if halves else "<f4").tobytes() if few is None else few_bits(values, few)
        )
    return b"".join(parts)


def few_bits(values: np.ndarray, type: QuantType) -> bytes:
    """Return a matrix as blocks of `type`."""
    return encode_rows(values.astype(np.float32), type, native.Threads(1)).tobytes()


def write_ggml(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    words: Sequence[bytes],
    type: QuantType | None = None,
) -> Path:
    """Write the file."""
    path.write_bytes(ggml_bytes(config, tensors, words, type))
    return path
