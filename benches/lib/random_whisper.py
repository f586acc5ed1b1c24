"""Writes a Whisper of published sizes with random weights, as CTranslate2 and Freehold read it: for speed alone.

Weights are halves from one random block, repeated: a gigabyte is written in seconds. Knows shapes; knows no engine.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SOUND, TEXTS = 1500, 448
END, START = 50_257, 50_258  # ids of every Whisper that knows languages; marks of time end the vocabulary
MARKS = 1501
HALVES, BYTES = 4, 1  # types of the container
BLOCK = (1 << 20) + 7  # values that are drawn


@dataclass(frozen=True)
class WhisperShape:
    """Sizes of one published Whisper."""

    width: int
    encoder_layers: int
    decoder_layers: int
    bands: int
    vocab: int


SHAPES = {
    "base": WhisperShape(512, 6, 6, 80, 51_865),
    "large-v3-turbo": WhisperShape(1280, 32, 4, 128, 51_866),
}


def write_random(shape: WhisperShape, folder: Path) -> Path:
    """Write model.bin, config.json and vocabulary.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    block = np.random.default_rng(36).standard_normal(BLOCK).astype(np.float32)
    tensors = list(_tensors(shape))
    with (folder / "model.bin").open("wb") as file:
        file.write(struct.pack("<I", 6) + _name("WhisperSpec") + struct.pack("<II", 3, len(tensors) + 1))
        for place, (name, dims, mean, deviation) in enumerate(tensors):
            values = np.resize(np.roll(block, 7919 * place), math.prod(dims)) * deviation + mean
            if name.endswith("linear_0/bias") and "self_attention" in name:
                values[shape.width : 2 * shape.width] = 0  # keys have none
            if name.endswith("attention/linear_1/bias") and "self" not in name:
                values[: shape.width] = 0
            file.write(_name(name) + struct.pack(f"<B{len(dims)}IB", len(dims), *dims, HALVES))
            file.write(struct.pack("<I", 2 * values.size))
            file.write(values.astype(np.float16).tobytes())
        file.write(_name("decoder/num_heads") + struct.pack("<BBIb", 0, BYTES, 1, shape.width // 64))
        file.write(
            struct.pack("<I", 1) + _name("decoder/projection/weight") + _name("decoder/embeddings/weight")
        )
    (folder / "config.json").write_text(
        json.dumps({"suppress_ids": [], "suppress_ids_begin": [], "lang_ids": []})
    )
    names = [f"<{i}>" for i in range(shape.vocab)]
    names[END], names[START] = "<|endoftext|>", "<|startoftranscript|>"
    names[no_marks(shape.vocab)] = "<|notimestamps|>"
    (folder / "vocabulary.json").write_text(json.dumps(names))
    return folder


def no_marks(vocab: int) -> int:
    """Return the id of the token that stands before a text without marks of time."""
    return vocab - MARKS - 1


def _tensors(shape: WhisperShape) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Yield name, dimensions, mean and deviation of each tensor."""
    n, inner = shape.width, 4 * shape.width

    def matrix(name: str, *dims: int) -> tuple[str, tuple[int, ...], float, float]:
        return name, dims, 0.0, 1 / math.sqrt(math.prod(dims[1:]))

    def linear(name: str, rows: int, columns: int) -> list[tuple[str, tuple[int, ...], float, float]]:
        return [(f"{name}/bias", (rows,), 0.0, 0.02), matrix(f"{name}/weight", rows, columns)]

    def norm(name: str) -> list[tuple[str, tuple[int, ...], float, float]]:
        return [(f"{name}/beta", (n,), 0.0, 0.05), (f"{name}/gamma", (n,), 1.0, 0.1)]

    yield matrix("encoder/conv1/weight", n, shape.bands, 3)
    yield "encoder/conv1/bias", (n,), 0.0, 0.02
    yield matrix("encoder/conv2/weight", n, n, 3)
    yield "encoder/conv2/bias", (n,), 0.0, 0.02
    yield "encoder/position_encodings/encodings", (SOUND, n), 0.0, 0.1
    yield "decoder/position_encodings/encodings", (TEXTS, n), 0.0, 0.1
    yield "decoder/embeddings/weight", (shape.vocab, n), 0.0, 0.05
    yield from norm("encoder/layer_norm") + norm("decoder/layer_norm")
    for side, layers in (("encoder", shape.encoder_layers), ("decoder", shape.decoder_layers)):
        for layer in range(layers):
            own = f"{side}/layer_{layer}"
            yield from norm(f"{own}/self_attention/layer_norm") + norm(f"{own}/ffn/layer_norm")
            yield from linear(f"{own}/self_attention/linear_0", 3 * n, n)
            yield from linear(f"{own}/self_attention/linear_1", n, n)
            yield from linear(f"{own}/ffn/linear_0", inner, n) + linear(f"{own}/ffn/linear_1", n, inner)
            if side == "decoder":
                yield from norm(f"{own}/attention/layer_norm")
                yield from linear(f"{own}/attention/linear_0", n, n)
                yield from linear(f"{own}/attention/linear_1", 2 * n, n)
                yield from linear(f"{own}/attention/linear_2", n, n)


def _name(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw
