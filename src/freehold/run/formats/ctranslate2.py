"""Reads a folder of CTranslate2's Whisper in place: `model.bin` over mmap, its tensors under the names of safetensors.

Knows the container and what its converter did to Whisper's weights: queries, keys and values (or keys and values) one
below another, and a bias of zeros at keys, which is left out. Knows no arithmetic. Trusts nothing: tensors must fill
the file to the byte.

Layout, little-endian: version u32, name, revision u32, count u32; then each tensor: name, rank u8, dimensions u32,
type u8, bytes u32, data; then aliases u32, two names each. A name: length u16 with its zero, bytes, zero. Read of
CTranslate2 4.8.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import Metadata
from freehold.run.formats.filemap import FETCH_AGAIN, MappedReader, Tensor, map_file, read_head, shown
from freehold.run.formats.safetensors import SafetensorsFile
from freehold.run.formats.weight_types import LAYOUTS, QuantType

WEIGHTS = "model.bin"
SPEC = "WhisperSpec"
VERSION, REVISION = 6, 3  # that are read
MAX_TENSORS, MAX_NAME, MAX_DIMS = 4096, 256, 4
HEAD_WIDTH = 64  # of every published Whisper

_TYPES = {
    0: QuantType.F32,
    1: QuantType.I8,
    2: QuantType.I16,
    3: QuantType.I32,
    4: QuantType.F16,
    5: QuantType.BF16,
}
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(self_attention|attention|ffn)/(.+)")
_ENDS = {
    "encoder/conv1": "model.encoder.conv1",
    "encoder/conv2": "model.encoder.conv2",
    "encoder/layer_norm": "model.encoder.layer_norm",
    "decoder/layer_norm": "model.decoder.layer_norm",
    "encoder/position_encodings/encodings": "model.encoder.embed_positions.weight",
    "decoder/position_encodings/encodings": "model.decoder.embed_positions.weight",
    "decoder/embeddings/weight": "model.decoder.embed_tokens.weight",
}
_MODULES = {"self_attention": "self_attn", "attention": "encoder_attn"}
_NORMS = {
    "self_attention": "self_attn_layer_norm",
    "attention": "encoder_attn_layer_norm",
    "ffn": "final_layer_norm",
}
_LEAVES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


class Ctranslate2File(SafetensorsFile):
    """An open folder; `config` is what Hugging Face's config.json would say, `stated` the folder's own config.json."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        super().__init__(path, (path / WEIGHTS,), tensors)
        self.stated = self.config
        self.config = Metadata(_config(path, tensors), str(path / WEIGHTS))


def is_ctranslate2(head: bytes) -> bool:
    """Tell whether a file that starts with `head` (32 bytes or more) is a Whisper of CTranslate2."""
    name = f"{SPEC}\0".encode()
    return 4 <= int.from_bytes(head[:4], "little") <= 16 and head[6 : 6 + len(name)] == name


def ctranslate2_weights(folder: Path) -> list[Path]:
    """Return the file of weights of a folder that holds a Whisper of CTranslate2; none of another folder."""
    weights = folder / WEIGHTS
    return [weights] if weights.is_file() and is_ctranslate2(read_head(weights)) else []


def open_ctranslate2(folder: str | Path) -> Ctranslate2File:
    """Open a folder with a Whisper's model.bin; tensors are float32, or views of the file's halves.

    Raises BadModelFile naming file and value, UnsupportedModel for another version, ModelNotFound.
    """
    folder = Path(folder)
    stored, aliases = _read(folder / WEIGHTS)
    expected = {"decoder/projection/weight": "decoder/embeddings/weight"}
    if aliases != expected:
        raise UnsupportedModel(
            f"{folder / WEIGHTS} shares tensors as {shown(str(aliases))}; a Whisper shares its head with its embedding",
            "convert the model again",
        )
    scales = {name.removesuffix("_scale"): t for name, t in stored.items() if name.endswith("/weight_scale")}
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if not tensor.shape or name.endswith("_scale"):
            continue
        whole = _floats(tensor, scales[name]) if name in scales else tensor
        tensors |= {own.name: own for own in _parts(folder, name, whole)}
    return Ctranslate2File(folder, tensors)


# --- the container ---------------------------------------------------------------------------------


class _Reader(MappedReader):
    """Reads names too."""

    def name(self) -> str:
        """Return the next name."""
        size = self.number(2)
        if not 2 <= size <= MAX_NAME:
            raise BadModelFile(f"{self.path} has a name of {size:,} bytes at {self.at:,}; limit {MAX_NAME}")
        text = self.take(size).tobytes()
        if text[-1] or not text[:-1].isascii():
            raise BadModelFile(f"{self.path} has a name that is not ASCII text at byte {self.at - size:,}")
        return text[:-1].decode("ascii")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors by the file's names, and the names that stand for others."""
    reader = _Reader(path, map_file(path))
    version = reader.number(4)
    if version != VERSION:
        raise UnsupportedModel(
            f"{path} is of version {version} of CTranslate2's files; read is {VERSION}",
            "convert the model with CTranslate2 4",
        )
    spec, revision = reader.name(), reader.number(4)
    if (spec, revision) != (SPEC, REVISION):
        raise UnsupportedModel(
            f"{path} is a {shown(spec)} of revision {revision}; read is {SPEC} of revision {REVISION}",
            "use the model's safetensors or GGUF",
        )
    tensors: dict[str, Tensor] = {}
    for _ in range(_count(reader, "tensors")):
        tensor = _tensor(reader)
        if tensor.name in tensors:
            raise BadModelFile(f"{path} holds the tensor {shown(tensor.name)} twice")
        tensors[tensor.name] = tensor
    aliases = {reader.name(): reader.name() for _ in range(_count(reader, "aliases"))}
    if reader.at != len(reader.data):
        raise BadModelFile(
            f"{path} has {len(reader.data) - reader.at:,} bytes after its last name", FETCH_AGAIN
        )
    return tensors, aliases


def _count(reader: _Reader, what: str) -> int:
    count = reader.number(4)
    if count > MAX_TENSORS:
        raise BadModelFile(f"{reader.path} holds {count:,} {what}; the limit is {MAX_TENSORS:,}")
    return count


def _tensor(reader: _Reader) -> Tensor:
    name, rank = reader.name(), reader.number(1)
    where = f"{reader.path}: tensor {shown(name)}"
    if rank > MAX_DIMS:
        raise BadModelFile(f"{where} has {rank} dimensions; the limit is {MAX_DIMS}")
    shape = tuple(reader.number(4) for _ in range(rank))
    code, size = reader.number(1), reader.number(4)
    if code not in _TYPES:
        raise UnsupportedModel(
            f"{where} has the number type {code}, which is not known", "convert it to float16"
        )
    kind = _TYPES[code]
    need = math.prod(shape) * LAYOUTS[kind].bytes
    if size != need:
        raise BadModelFile(f"{where} has {size:,} bytes and its shape {shape} needs {need:,}")
    return Tensor(name, kind, shape, reader.take(size))


# --- Whisper's tensors under the names of safetensors ------------------------------------------------


def _floats(codes: Tensor, scale: Tensor) -> Tensor:
    """Return what int8 codes stand for: code / scale of the row."""
    rows = codes.numpy().reshape(codes.shape[0], -1)
    factors = scale.numpy().reshape(-1)
    if len(factors) != len(rows) or not (np.isfinite(factors) & (factors > 0)).all():
        raise BadModelFile(f"{codes.name} has scales that are not a positive number for each of its rows")
    values = (rows / factors[:, None]).astype(np.float32)
    return Tensor(codes.name, QuantType.F32, codes.shape, values.reshape(-1).view(np.uint8))


def _parts(folder: Path, name: str, tensor: Tensor) -> list[Tensor]:
    """Return a stored tensor under its names in safetensors, cut where several lie one below another."""
    stem, _, leaf = name.rpartition("/")
    if name in _ENDS:
        return [_named(tensor, _ENDS[name])]
    if stem in _ENDS and leaf in _LEAVES:
        return [_named(tensor, f"{_ENDS[stem]}.{_LEAVES[leaf]}")]
    match = _LAYER.fullmatch(name)
    if match and leaf in _LEAVES:
        side, number, group, rest = match.groups()
        prefix, module = f"model.{side}.layers.{number}", rest.partition("/")[0]
        names = _names_of(group, module)
        if names is not None:
            return _cut(folder, tensor, [f"{prefix}.{each}.{_LEAVES[leaf]}" for each in names])
    raise UnsupportedModel(
        f"{folder / WEIGHTS} holds the tensor {shown(name)}, which no Whisper has", "convert the model again"
    )


def _names_of(group: str, module: str) -> list[str] | None:
    if module == "layer_norm":
        return [_NORMS[group]]
    if group == "ffn":
        return {"linear_0": ["fc1"], "linear_1": ["fc2"]}.get(module)
    own = _MODULES[group]
    split = {
        "self_attention": {"linear_0": "qkv", "linear_1": "o"},
        "attention": {"linear_0": "q", "linear_1": "kv", "linear_2": "o"},
    }[group].get(module)
    if split is None:
        return None
    return [f"{own}.out_proj"] if split == "o" else [f"{own}.{each}_proj" for each in split]


def _cut(folder: Path, tensor: Tensor, names: list[str]) -> list[Tensor]:
    rows = tensor.shape[0]
    if rows % len(names):
        raise BadModelFile(
            f"{folder / WEIGHTS}: {tensor.name} has {rows:,} rows, not {len(names)} times as many"
        )
    each = rows // len(names)
    shape, size = (each, *tensor.shape[1:]), tensor.nbytes // len(names)
    cut = [Tensor(n, tensor.type, shape, tensor.raw[i * size : (i + 1) * size]) for i, n in enumerate(names)]
    biases = [part for part in cut if part.name.endswith("k_proj.bias")]
    if any(part.numpy().any() for part in biases):
        raise UnsupportedModel(f"{folder / WEIGHTS}: {tensor.name} has biases at keys, which no Whisper has")
    return [part for part in cut if part not in biases]


def _named(tensor: Tensor, name: str) -> Tensor:
    return Tensor(name, tensor.type, tensor.shape, tensor.raw)


def _config(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that Hugging Face's config.json states, as shapes tell them."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        tensor = tensors.get(name)
        if tensor is None or len(tensor.shape) != rank:
            raise BadModelFile(f"{path / WEIGHTS} has no tensor {name} of {rank} dimensions", FETCH_AGAIN)
        return tensor.shape

    def layers(side: str) -> int:
        numbers = {int(name.split(".")[3]) for name in tensors if name.startswith(f"model.{side}.layers.")}
        return len(numbers)

    width, mels, _ = shape("model.encoder.conv1.weight", 3)
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": width,
        "num_mel_bins": mels,
        "vocab_size": shape("model.decoder.embed_tokens.weight", 2)[0],
        "max_source_positions": shape("model.encoder.embed_positions.weight", 2)[0],
        "max_target_positions": shape("model.decoder.embed_positions.weight", 2)[0],
    }
    for side in ("encoder", "decoder"):
        config[f"{side}_layers"] = layers(side)
        config[f"{side}_attention_heads"] = max(width // HEAD_WIDTH, 1)
        config[f"{side}_ffn_dim"] = shape(f"model.{side}.layers.0.fc1.weight", 2)[0]
    return config
