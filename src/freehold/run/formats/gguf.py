"""Reads GGUF files (versions 2 and 3, little-endian, sharded or not) in place over mmap.

Knows the container: header, metadata, tensor descriptors; knows no architecture and no meaning of a key.
Nothing in the file is trusted: a count, length, offset or product is compared with the bytes that are there
before it is used, so a lying header fails at once and allocates nothing.


Layout: "GGUF", version u32, tensor count u64, key count u64; keys; descriptors; padding; tensor data.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from freehold._native import Strings
from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel
from freehold.run.formats.fields import Metadata
from freehold.run.formats.filemap import (
    FETCH_AGAIN,
    HEAD_BYTES,
    Tensor,
    TensorFile,
    map_file,
    not_a_model,
    shown,
)
from freehold.run.formats.trellis import REQUIRES
from freehold.run.formats.weight_types import QuantType, quant_type, tensor_bytes

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20  # a huge page is 2 MB; no writer aligns tensors to half of one
MAX_DIMS = 4  # ggml's GGML_MAX_DIMS
MAX_ELEMENTS = (1 << 63) - 1  # ggml counts in int64
MAX_KEYS = 1 << 16  # real files have about forty
MAX_KEY_BYTES = (1 << 16) - 1  # the specification's own limit
MAX_NAME_BYTES = 1024  # the specification says 64; converters of other projects exceed it
MAX_ARRAY_DEPTH = 4  # arrays of arrays are allowed and unused
MAX_ARRAY_ITEMS = 1 << 24  # over all arrays of a file; a vocabulary of 262k tokens needs about a million
_MANY_STRINGS = 1000
MAX_SHARDS = 4096  # each holds a file descriptor open

_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, name, type, value
_MIN_DESCRIPTOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, name, dimension count, one dimension, type, offset

_BOOL, _STRING, _ARRAY = 7, 8, 9
NUMBERS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
_DTYPES = {code: np.dtype(name) for code, name in (NUMBERS | {_BOOL: "u1"}).items()}
_MIN_ITEM_BYTES = {_STRING: 8, _ARRAY: 4 + 8} | {code: dtype.itemsize for code, dtype in _DTYPES.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class GGUFFile(TensorFile):
    """An open GGUF model."""

    def __init__(self, shards: list[_Shard], tensors: dict[str, Tensor]) -> None:
        super().__init__(shards[0].path, tuple(shard.path for shard in shards), tensors)
        self.version = shards[0].version
        self.metadata = shards[0].metadata
        self.encoded: Mapping[str, npt.NDArray[np.uint8]] = MappingProxyType(shards[0].encoded)
        """Each key's value as it is in the file, type first: what a copy of it needs."""

    def close(self) -> None:
        """Let go of the tensors and the encoded keys; see TensorFile."""
        super().close()
        self.encoded = MappingProxyType({})

    @property
    def architecture(self) -> str:
        """The architecture's name in the file (`general.architecture`), "llama" for example."""
        return self.metadata.get_str("general.architecture")


def open_gguf(path: str | Path) -> GGUFFile:
    """Open a GGUF file; if it is one shard of several, open all of them, whichever was named.

    `metadata` is the first shard's, `tensors` are those of all. Raises ModelNotFound when the file or a
    shard is missing, UnsupportedModel for versions, byte orders and tensor types Freehold does not read, and
    BadModelFile for anything inconsistent, with file, value and limit.
    """
    shards = _all_shards(_read_shard(Path(path)))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in tensors:
                raise BadModelFile(f"{shard.path}: tensor {shown(tensor.name)} occurs twice")
            tensors[tensor.name] = tensor
    total = shards[0].metadata.get_int("split.tensors.count", len(tensors))
    if len(shards) > 1 and total != len(tensors):
        raise BadModelFile(
            f"{shards[0].path}: {total} tensors are announced and the shards hold {len(tensors)}", FETCH_AGAIN
        )
    return GGUFFile(shards, tensors)


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    version: int
    metadata: Metadata
    encoded: dict[str, npt.NDArray[np.uint8]]
    tensors: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Descriptor:
    name: str
    type: QuantType
    shape: tuple[int, ...]
    offset: int  # from the start of the data section
    nbytes: int


def _read_shard(path: Path) -> _Shard:
    data = map_file(path)
    cursor = _HeaderCursor(path, data)
    version = _read_version(cursor)
    tensor_count, key_count = cursor.u64(), cursor.u64()
    cursor.need(tensor_count, _MIN_DESCRIPTOR_BYTES, "tensors")
    cursor.need(key_count, _MIN_KEY_BYTES, "metadata keys")
    if key_count > MAX_KEYS:
        raise cursor.bad(f"{key_count:,} metadata keys; the limit is {MAX_KEYS:,}")
    values, spans = _read_metadata(cursor, key_count)
    metadata = Metadata(values, str(path))
    _check_requires(metadata, path)
    descriptors = [_read_descriptor(cursor) for _ in range(tensor_count)]
    alignment = _alignment(metadata, path)
    start = -(-cursor.position // alignment) * alignment
    _check_placement(cursor, descriptors, start, alignment)
    tensors = [
        Tensor(d.name, d.type, d.shape, data[start + d.offset : start + d.offset + d.nbytes])
        for d in descriptors
    ]
    return _Shard(path, version, metadata, {key: data[span] for key, span in spans.items()}, tensors)


def _read_version(cursor: _HeaderCursor) -> int:
    head = bytes(cursor.view[:HEAD_BYTES])
    if not head.startswith(MAGIC):
        raise not_a_model(cursor.path, head)
    cursor.position = len(MAGIC)
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise UnsupportedModel(
            f"{cursor.path} is a big-endian GGUF file; only little-endian ones are read",
            "fetch the little-endian build of this model",
        )
    raise UnsupportedModel(
        f"{cursor.path} is GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read",
        "fetch a current build of this model",
    )


def _read_metadata(cursor: _HeaderCursor, count: int) -> tuple[dict[str, object], dict[str, slice]]:
    """Return the values by key, and where each lies."""
    values: dict[str, object] = {}
    spans: dict[str, slice] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        if not key or key in values:
            raise cursor.bad(f"metadata key {shown(key)} {'occurs twice' if key else 'is empty'}")
        begin = cursor.position
        values[key] = cursor.value(cursor.u32(), key)
        spans[key] = slice(begin, cursor.position)
    return values, spans


def _check_requires(metadata: Metadata, path: Path) -> None:
    """Refuse a file that says it needs more than this version reads."""
    needs = metadata.get_str("freehold.requires", REQUIRES)
    if needs != REQUIRES:
        raise UnsupportedModel(
            f"{path} requires {shown(needs)} of Freehold; this version has {REQUIRES}",
            "update Freehold, or quantise the model again with this version",
        )


def _read_descriptor(cursor: _HeaderCursor) -> _Descriptor:
    name = cursor.string("a tensor name", MAX_NAME_BYTES)
    with cursor.about(f"tensor {shown(name)}"):
        if not name:
            raise BadModelFile("the name is empty")
        dims = cursor.dims()
        type = quant_type(cursor.u32())
        _check_product(dims)
        nbytes = tensor_bytes(type, tuple(reversed(dims)))
        return _Descriptor(name, type, tuple(reversed(dims)), cursor.u64(), nbytes)


def _check_product(dims: list[int]) -> None:
    product = 1
    for dim in dims:
        if dim == 0:
            raise BadModelFile(f"dimensions {dims} contain a zero")
        product *= dim
        if product > MAX_ELEMENTS:
            raise BadModelFile(f"dimensions {dims} multiply beyond 2^63 - 1 elements")


def _alignment(metadata: Metadata, path: Path) -> int:
    alignment = metadata.get_int("general.alignment", DEFAULT_ALIGNMENT)
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise BadModelFile(
            f"{path}: general.alignment is {alignment}; it must be a power of two up to {MAX_ALIGNMENT:,}"
        )
    return alignment


def _check_placement(
    cursor: _HeaderCursor, descriptors: list[_Descriptor], start: int, alignment: int
) -> None:
    """Check that each tensor is within the file and aligned, and that no two share a byte or a name."""
    names = {d.name for d in descriptors}
    if len(names) != len(descriptors):
        seen: set[str] = set()
        twice = next(d.name for d in descriptors if d.name in seen or seen.add(d.name))
        raise cursor.bad(f"tensor {shown(twice)} occurs twice")
    free_from, last = 0, ""
    for d in sorted(descriptors, key=lambda d: d.offset):
        if d.offset % alignment:
            raise cursor.bad(
                f"tensor {shown(d.name)} starts at offset {d.offset:,}, not a multiple of {alignment}"
            )
        if d.offset < free_from:
            raise cursor.bad(f"tensors {shown(last)} and {shown(d.name)} overlap at offset {d.offset:,}")
        free_from, last = d.offset + d.nbytes, d.name
        if start + free_from > cursor.end:
            raise cursor.bad(
                f"tensor {shown(d.name)} ends at byte {start + free_from:,} and the file at {cursor.end:,}",
                FETCH_AGAIN,
            )


def _all_shards(opened: _Shard) -> list[_Shard]:
    """Return every shard of the model `opened` belongs to, in order; alone if it is whole."""
    count = opened.metadata.get_int("split.count", 0)
    if count in (0, 1):
        return [opened]
    if not 1 < count <= MAX_SHARDS:
        raise BadModelFile(f"{opened.path}: split.count is {count}; at most {MAX_SHARDS} shards are read")
    return [_shard(opened, number, path) for number, path in enumerate(_shard_paths(opened.path, count))]


def _shard_paths(path: Path, count: int) -> list[Path]:
    name = _SHARD_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise BadModelFile(
            f"{path} is one of {count} shards and its name does not say which",
            f"name the shards NAME-00001-of-{count:05}.gguf and so on, in one directory",
        )
    paths = [path.with_name(f"{name['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [p.name for p in paths if not os.path.exists(p)]
    if missing:
        raise ModelNotFound(
            f"{len(missing)} of {count} shards are missing beside {path}, {missing[0]} first",
            "fetch the missing shards",
        )
    return paths


def _shard(opened: _Shard, number: int, path: Path) -> _Shard:
    shard = opened if path == opened.path else _read_shard(path)
    count, expected = shard.metadata.get_int("split.count"), opened.metadata.get_int("split.count")
    stated = shard.metadata.get_int("split.no")
    if (stated, count) != (number, expected):
        raise BadModelFile(
            f"{path} says it is shard {stated} of {count} (from 0); its name says {number} of {expected}",
            "the shards of two models are mixed, or one was renamed",
        )
    return shard


class _HeaderCursor:
    """A position in the mapped file that moves only over bytes that are there."""

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self._data = data
        self.view = data.data
        self.position = 0
        self.end = data.size
        self._items_left = MAX_ARRAY_ITEMS

    def bad(self, text: str, hint: str = "") -> BadModelFile:
        return BadModelFile(f"{self.path}: {text}", hint)

    @contextmanager
    def about(self, what: str) -> Iterator[None]:
        """Prefix errors raised inside, by this cursor or by weight_types.py, with the file and `what`."""
        try:
            yield
        except BadModelFile as error:
            text = error.message.removeprefix(f"{self.path}: ")
            raise type(error)(f"{self.path}: {what}: {text}", error.hint) from None

    def need(self, count: int, size: int, what: str) -> None:
        """Check that `count` items of at least `size` bytes can still follow."""
        left = self.end - self.position
        if count * size > left:
            raise self.bad(
                f"{count:,} {what} are announced and {left:,} bytes are left in the file", FETCH_AGAIN
            )

    def u32(self) -> int:
        return self._unpack(_U32)

    def u64(self) -> int:
        return self._unpack(_U64)

    def _unpack(self, shape: struct.Struct) -> int:
        self.need(1, shape.size, f"{shape.size}-byte integers")
        (value,) = shape.unpack_from(self.view, self.position)
        self.position += shape.size
        return value

    def dims(self) -> list[int]:
        count = self.u32()
        if not 1 <= count <= MAX_DIMS:
            raise self.bad(f"{count} dimensions; 1 to {MAX_DIMS} are allowed")
        return [self.u64() for _ in range(count)]

    def string(self, what: str, limit: int) -> str:
        length = self.u64()
        if length > limit:
            raise self.bad(f"{what} of {length:,} bytes; the limit is {limit:,}")
        self.need(length, 1, f"bytes of {what}")
        raw = self.view[self.position : self.position + length]
        self.position += length
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(
                f"{what} at byte {self.position - length:,} is not UTF-8: {error.reason}"
            ) from None

    def value(self, code: int, key: str, depth: int = 0) -> object:
        """Read a metadata value of the type `code`; numbers become Python's, arrays read-only copies."""
        if code == _STRING:
            return self.string(f"the value of {shown(key)}", self.end)
        if code == _ARRAY:
            return self._array(key, depth + 1)
        if code not in _DTYPES:
            raise self.bad(f"{shown(key)} has the value type {code}; 0 to 12 are defined")
        return self._numbers(code, 1, key)[0].item()

    def _array(self, key: str, depth: int) -> object:
        if depth > MAX_ARRAY_DEPTH:
            raise self.bad(f"{shown(key)} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        code, count = self.u32(), self.u64()
        if code not in _MIN_ITEM_BYTES:
            raise self.bad(f"{shown(key)} is an array of the value type {code}; 0 to 12 are defined")
        self.need(count, _MIN_ITEM_BYTES[code], f"array items of {shown(key)}")
        self._items_left -= count
        if self._items_left < 0:
            raise self.bad(
                f"{shown(key)} has {count:,} items; a file's arrays may hold {MAX_ARRAY_ITEMS:,} in all"
            )
        if code == _STRING:
            return self._strings(count, key)
        if code == _ARRAY:
            return [self._array(key, depth + 1) for _ in range(count)]
        return self._numbers(code, count, key)

    def _numbers(self, code: int, count: int, key: str) -> npt.NDArray[np.generic]:
        dtype = _DTYPES[code]
        self.need(count, dtype.itemsize, f"values of {shown(key)}")
        numbers = np.frombuffer(self.view, dtype, count, self.position).copy()
        self.position += numbers.nbytes
        if code == _BOOL:
            if numbers.size and int(numbers.max()) > 1:
                raise self.bad(f"{shown(key)} has the bool value {int(numbers.max())}; 0 and 1 are defined")
            numbers = numbers.astype(np.bool_)
        numbers.flags.writeable = False
        return numbers

    def _strings(self, count: int, key: str) -> Sequence[str]:
        """Read `count` strings; the 150,000 of a vocabulary stay bytes until one is used."""
        with self.about(shown(key)):
            strings = Strings.read(self._data, self.position, count)
        self.position += strings.file_bytes
        return strings if count > _MANY_STRINGS else list(strings)
