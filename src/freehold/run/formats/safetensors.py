"""Reads safetensors models in place over mmap: one file, or a directory as `transformers` writes it.

Knows the container, the shard index and where the side files are; knows no architecture and no config key.
Trusts nothing: the header must describe the file exactly, to the byte, and shards must be in the directory.


Layout of a file: header length u64, header (a JSON object), tensor data without gaps.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel
from freehold.run.formats.fields import Metadata
from freehold.run.formats.filemap import (
    FETCH_AGAIN,
    HEAD_BYTES,
    Tensor,
    TensorFile,
    cannot_read,
    map_file,
    not_a_model,
    read_small_file,
    shown,
)
from freehold.run.formats.weight_types import LAYOUTS, QuantType

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_INDEX_BYTES = 100_000_000  # it lists the tensors once more
MAX_CONFIG_BYTES = 16 << 20  # real ones have a few kB; some carry long label tables
MAX_DIMS = 8
MAX_SHARDS = 4096  # each holds a file descriptor open

WEIGHTS = "model.safetensors"
MISTRAL_WEIGHTS = "consolidated.safetensors"  # in Mistral's own names
_NOT_FINITE = ("Infinity", "-Infinity", "NaN")
_INDEX = ".index.json"
INDEX = WEIGHTS + _INDEX

_LENGTH_BYTES = 8
_NAMES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "I16", "I8", "U8")
_TYPES = {name: QuantType[name] for name in _NAMES}  # ours have the same names


class SafetensorsFile(TensorFile):
    """An open safetensors model.

    `config`, `params` (Mistral's own form) and `generation_config` are empty when the file is not there, and
    the paths are None.
    """

    def __init__(self, path: Path, paths: tuple[Path, ...], tensors: dict[str, Tensor]) -> None:
        super().__init__(path, paths, tensors)
        directory = path if os.path.isdir(path) else path.parent
        self.config = side_json(directory / "config.json")
        self.params = side_json(directory / "params.json")
        self.generation_config = side_json(directory / "generation_config.json")
        self.tokenizer_json = _if_there(directory / "tokenizer.json")
        self.tokenizer_config = _if_there(directory / "tokenizer_config.json")
        self.chat_template = _if_there(directory / "chat_template.jinja")


def open_safetensors(path: str | Path) -> SafetensorsFile:
    """Open a .safetensors file, or a directory with `model.safetensors` or its index and shards.

    Side files (config.json, tokenizer.json, ...) are looked for in the same directory. Raises ModelNotFound
    for what is missing, UnsupportedModel for number types Freehold does not read, BadModelFile for anything
    inconsistent, with file, value and limit.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return SafetensorsFile(path, (path,), _read_file(path))
    for name in (WEIGHTS, MISTRAL_WEIGHTS):
        if os.path.exists(path / name):
            return SafetensorsFile(path, (path / name,), _read_file(path / name))
        if os.path.exists(path / (name + _INDEX)):
            return _open_indexed(path, path / (name + _INDEX))
    raise _no_weights(path)


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file that starts with `head` (9 bytes or more) can be safetensors."""
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    return 2 <= length <= MAX_HEADER_BYTES and head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def _open_indexed(directory: Path, index: Path) -> SafetensorsFile:
    places = _weight_map(index)
    names = sorted(set(places.values()))
    if len(names) > MAX_SHARDS:
        raise BadModelFile(f"{index} names {len(names):,} shards; the limit is {MAX_SHARDS:,}")
    missing = [name for name in names if not os.path.exists(directory / name)]
    if missing:
        raise ModelNotFound(
            f"{len(missing)} of {len(names)} shards are missing in {directory}, {missing[0]} first",
            "fetch the missing shards",
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = _read_file(directory / name)
        for tensor in shard:
            if tensor in tensors:
                raise BadModelFile(f"{directory / name}: tensor {shown(tensor)} is in another shard too")
        for tensor, place in places.items():
            if place == name and tensor not in shard:
                raise BadModelFile(f"{index} puts tensor {shown(tensor)} into {name}, which does not hold it")
        tensors |= shard
    return SafetensorsFile(directory, tuple(directory / name for name in names), tensors)


def _weight_map(index: Path) -> dict[str, str]:
    """Read which shard holds which tensor; shards are plain file names, so that no index leads elsewhere."""
    places = _parse(read_small_file(index, MAX_INDEX_BYTES), index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise BadModelFile(f"{index} has no weight_map from tensor names to files")
    for name in set(map(str, places.values())):
        if not name.endswith(".safetensors") or any(char in name for char in "/\\:\0"):
            raise BadModelFile(
                f"{index} names the shard {shown(name)}; shards are .safetensors files in its own directory"
            )
    return {tensor: str(name) for tensor, name in places.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    data = map_file(path)
    head = data[:HEAD_BYTES].tobytes()
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if not is_safetensors(head):
        raise not_a_model(path, head)
    start = _LENGTH_BYTES + length
    if start > data.size:
        raise BadModelFile(
            f"{path}: the header takes {start:,} bytes and the file has {data.size:,}", FETCH_AGAIN
        )
    entries = _parse(data[_LENGTH_BYTES:start].tobytes(), path)
    described = [_describe(path, name, entry) for name, entry in entries.items() if name != "__metadata__"]
    _check_placement(path, described, data.size - start)
    section = data[start:]
    return {e.name: Tensor(e.name, e.type, e.shape, section[e.begin : e.end]) for e in described}


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    type: QuantType
    shape: tuple[int, ...]
    begin: int  # from the start of the data section
    end: int


def _describe(path: Path, name: str, entry: object) -> _Entry:
    where = f"{path}: tensor {shown(name)}"
    if not isinstance(entry, dict) or not name:
        raise BadModelFile(f"{where} is described by no object" if name else f"{path}: a tensor has no name")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise UnsupportedModel(
            f"{where} has the number type {shown(str(dtype))}; supported types are {', '.join(_TYPES)}",
            "fetch this model in bf16 or f16, or as a GGUF file",
        )
    if not _counts(shape) or len(shape) > MAX_DIMS:
        raise BadModelFile(f"{where} has the shape {shown(str(shape))}; up to {MAX_DIMS} counts are allowed")
    if not _counts(span) or len(span) != 2:
        raise BadModelFile(f"{where} has the data_offsets {shown(str(span))}; two counts are needed")
    size = math.prod(shape) * LAYOUTS[_TYPES[dtype]].bytes
    if span[1] - span[0] != size:
        raise BadModelFile(f"{where} spans {span[1] - span[0]:,} bytes and its shape {shape} needs {size:,}")
    return _Entry(name, _TYPES[dtype], tuple(shape), span[0], span[1])


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Tell whether `value` is a list of integers a file offset can be (so that products stay small)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_placement(path: Path, entries: list[_Entry], size: int) -> None:
    """Check that the tensors fill the data section of `size` bytes without gap or overlap."""
    reached = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != reached:
            raise BadModelFile(
                f"{path}: tensor {shown(entry.name)} starts at data byte {entry.begin:,}, not at {reached:,}"
            )
        reached = entry.end
    if reached != size:
        raise BadModelFile(
            f"{path}: tensors take {reached:,} bytes and the file has {size:,} for them", FETCH_AGAIN
        )


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object whose keys, at every depth, are unique.

    What is not finite is a number: published files have a bare Infinity, transformers 5 writes an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        values = dict(pairs)
        if len(pairs) == 1 and values.get("__float__") in _NOT_FINITE:
            return float(values["__float__"])
        if len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise BadModelFile(f"{path}: the key {shown(twice)} occurs twice in one JSON object")
        return values

    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path}: not valid JSON: {error}", FETCH_AGAIN) from None
    if not isinstance(values, dict):
        raise BadModelFile(f"{path}: the JSON is not an object but a {type(values).__name__}")
    return values


def side_json(path: Path) -> Metadata:
    """Read a JSON object of at most MAX_CONFIG_BYTES beside weights; an empty one if it is not there."""
    fields = _parse(read_small_file(path, MAX_CONFIG_BYTES), path) if os.path.exists(path) else {}
    return Metadata(fields, str(path))


def _if_there(path: Path) -> Path | None:
    return path if os.path.exists(path) else None


def _no_weights(directory: Path) -> BadModelFile:
    try:
        names = {os.path.splitext(name)[1]: name for name in os.listdir(directory)}
    except OSError as error:
        raise cannot_read(directory, error) from error
    if ".gguf" in names:
        return BadModelFile(
            f"{directory} is a directory of GGUF files", f"name the file itself, {directory / names['.gguf']}"
        )
    if ".bin" in names or ".pth" in names or ".pt" in names:
        return BadModelFile(
            f"{directory} holds pickled weights, which Freehold never loads",
            "fetch the safetensors or GGUF version of this model",
        )
    return BadModelFile(f"{directory} holds neither {WEIGHTS} nor {INDEX}", "give the directory of a model")
