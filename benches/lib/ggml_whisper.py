"""Writes a Whisper as whisper.cpp reads it, from a folder of CTranslate2: matrices as halves; and names as openai's.

    magic i32; eleven i32 of sizes; filters: rows i32, columns i32, f32; tokens: count i32, each length i32 and bytes;
    tensors: rank i32, name's length i32, type i32 (0 f32, 1 f16), dimensions i32 from the last on, name, data

Tokens that are not text have no entry: whisper.cpp makes them up from the size of the vocabulary.
Read of whisper.cpp, August 2026.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from freehold.run.formats.ctranslate2 import Ctranslate2File, open_ctranslate2
from freehold.run.models.mel import filters

MAGIC, HALVES = 0x67676D6C, 1
SIZES = (
    "vocab_size", "max_source_positions", "d_model", "encoder_attention_heads", "encoder_layers",
    "max_target_positions", "d_model", "decoder_attention_heads", "decoder_layers", "num_mel_bins",
)  # fmt: skip
NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"final_layer_norm", "mlp_ln"),
    (r"encoder_attn\.", "cross_attn."),
    (r"self_attn\.", "attn."),
    (r"\.q_proj", ".query"),
    (r"\.k_proj", ".key"),
    (r"\.v_proj", ".value"),
    (r"\.out_proj", ".out"),
    (r"\.fc1", ".mlp.0"),
    (r"\.fc2", ".mlp.2"),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"^encoder\.layer_norm", "encoder.ln_post"),
    (r"^decoder\.layer_norm", "decoder.ln"),
)


def write_ggml(folder: Path, target: Path) -> None:
    """Write the model of a folder to a file."""
    with open_ctranslate2(folder) as opened, target.open("wb") as file:
        numbers = [opened.config.get_int(name) for name in SIZES]
        file.write(struct.pack("<12i", MAGIC, *numbers, HALVES))
        bank = filters(numbers[-1]).astype(np.float32)
        file.write(struct.pack("<2i", *bank.shape) + bank.tobytes())
        tokens = _tokens(folder / "vocabulary.txt")
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, values in named(opened):
            _tensor(file, name, values)


def named(opened: Ctranslate2File) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors by openai's names, as float32."""
    for name, tensor in opened.tensors.items():
        yield _name(name), np.asarray(tensor.numpy(), np.float32).reshape(tensor.shape)


def _name(name: str) -> str:
    for pattern, other in NAMES:
        name = re.sub(pattern, other, name)
    return name


def _tensor(file: BinaryIO, name: str, values: NDArray[np.float32]) -> None:
    halves = values.ndim > 1 and "positional" not in name
    if re.search(r"conv\d\.bias", name):
        values = values[:, None]
        halves = False
    raw = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(raw), int(halves)))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + raw)
    file.write(values.astype(np.float16 if halves else np.float32).tobytes())


def _tokens(vocabulary: Path) -> list[bytes]:
    """Return the bytes of each token of text; a file has each byte as a printable letter."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [each for each in range(256) if each not in plain]
    letters = {chr(each): each for each in plain} | {chr(256 + i): each for i, each in enumerate(others)}
    lines = vocabulary.read_text("utf-8").split("\n")
    return [bytes(letters[letter] for letter in line) for line in lines[: lines.index("<|endoftext|>")]]
