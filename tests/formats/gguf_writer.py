"""A tiny GGUF writer for tests: writes whatever it is given, also what no sane writer would."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freehold.run.formats.weight_types import QuantType, tensor_bytes

FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Value:
    """A metadata value with its GGUF type id; an array's `item` is the type of its items."""

    code: int
    value: object
    item: int = -1


@dataclass(frozen=True)
class Entry:
    """A tensor to write; `dims` innermost first, as in the file; `offset` and `data` None: the right ones."""

    name: str
    type: int
    dims: tuple[int, ...]
    data: bytes | None = None
    offset: int | None = None


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(value: Value) -> bytes:
    if value.code == STRING:
        return string(value.value)  # type: ignore[arg-type]
    if value.code == ARRAY:
        items: Sequence[object] = value.value  # type: ignore[assignment]
        head = struct.pack("<IQ", value.item, len(items))
        nested = (item if isinstance(item, Value) else Value(value.item, item) for item in items)
        return head + b"".join(map(value_bytes, nested))
    return struct.pack("<" + FORMATS[value.code], value.value)


def gguf_bytes(
    metadata: Mapping[str, Value] | Sequence[tuple[str, Value]],
    tensors: Sequence[Entry] = (),
    *,
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """Serialise a file; counts can be lied about."""
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if key_count is None else key_count,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts)
    head += b"".join(string(key) + struct.pack("<I", v.code) + value_bytes(v) for key, v in pairs)
    body = b""
    for tensor in tensors:
        data = random_data(tensor) if tensor.data is None else tensor.data
        offset = len(body) if tensor.offset is None else tensor.offset
        head += string(tensor.name) + struct.pack("<I", len(tensor.dims))
        head += struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims) + struct.pack("<IQ", tensor.type, offset)
        body += data + bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment) + body


def random_data(tensor: Entry) -> bytes:
    size = tensor_bytes(QuantType(tensor.type), tuple(reversed(tensor.dims)))
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


def write_gguf(path: Path, *args: object, **kwargs: object) -> Path:
    path.write_bytes(gguf_bytes(*args, **kwargs))  # type: ignore[arg-type]
    return path


ARCHITECTURE = {"general.architecture": Value(STRING, "llama")}
SMALL_METADATA = ARCHITECTURE | {
    "general.alignment": Value(4, 32),
    "llama.block_count": Value(4, 2),
    "llama.rope.freq_base": Value(6, 10000.0),
    "tokenizer.ggml.add_bos_token": Value(7, True),
    "tokenizer.ggml.tokens": Value(ARRAY, ["<s>", "a", "Ġb", "日"], STRING),
    "tokenizer.ggml.scores": Value(ARRAY, [0.0, -1.5, -2.0, 3.25], 6),
    "nested": Value(ARRAY, [Value(ARRAY, [1, 2], 5), Value(ARRAY, ["x"], STRING)], ARRAY),
}
SMALL_TENSORS = (
    Entry("token_embd.weight", QuantType.Q8_0, (64, 4)),
    Entry("blk.0.attn_q.weight", QuantType.Q4_K, (256, 3)),
    Entry("output_norm.weight", QuantType.F32, (7,)),
)
