"""Writes GGUF files (version 3, little-endian) as their tensors come: one of them in memory, or a piece of one.

Knows the container: keys, descriptors, offsets, alignment; knows no architecture and makes no weights. A header is
complete before the first tensor, so types and shapes are planned first, and a file that was interrupted can be
continued: the same header, the tensors that were whole, then the rest.


The layout is described in gguf.py.
"""

from __future__ import annotations

import errno
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from freehold.base.errors import CapacityExceeded, StoreError, UsageError
from freehold.run.formats.gguf import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_KEY_BYTES, NUMBERS, GGUFFile
from freehold.run.formats.weight_types import QuantType, tensor_bytes

VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64 = 4, 5, 6, 7, 8, 9, 10, 11  # GGUF's value types
_NUMBERS = {_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?", _U64: "<Q", _I64: "<q"}
_ARRAYS = {name.removeprefix("<"): code for code, name in NUMBERS.items()} | {"b1": _BOOL}
_LAYOUT_KEYS = ("general.alignment", "split.no", "split.count", "split.tensors.count")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Bytes: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EncodedValue:
    """A key's value as a GGUF holds it: its type and its bytes."""

    raw: bytes


Value: TypeAlias = bool | int | float | str | Sequence[Any] | npt.NDArray[Any] | EncodedValue
"""An int becomes 32 bits where it fits, a float float32, a list of ints int32; an array keeps its type."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written. `shape` is row-major, outermost first, as in Tensor."""

    name: str
    type: QuantType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes, without padding."""
        return tensor_bytes(self.type, self.shape)


def copied_keys(source: GGUFFile) -> dict[str, Value]:
    """Return the metadata of an open GGUF with its types, but not what describes that file's own layout."""
    return {
        key: EncodedValue(raw.tobytes()) for key, raw in source.encoded.items() if key not in _LAYOUT_KEYS
    }


def gguf_header(keys: Mapping[str, Value], tensors: Sequence[TensorPlan]) -> bytes:
    """Return all that precedes the first tensor's bytes, padding too."""
    head = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(keys)))
    for key, value in keys.items():
        assert 0 < len(key.encode()) <= MAX_KEY_BYTES, key
        head += _text(key) + encoded(value)
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1] or (1,)  # a GGUF states the fastest dimension first
        assert len(dims) <= MAX_DIMS, tensor
        head += _text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", tensor.type, offset)
        offset = _aligned(offset + tensor.nbytes)
    return bytes(head + bytes(_aligned(len(head)) - len(head)))


def gguf_size(keys: Mapping[str, Value], tensors: Sequence[TensorPlan]) -> int:
    """Return the bytes of the whole file."""
    return len(gguf_header(keys, tensors)) + sum(_aligned(t.nbytes) for t in tensors)


def write_gguf(
    path: Path, keys: Mapping[str, Value], tensors: Sequence[TensorPlan], data: Iterable[Bytes]
) -> Path:
    """Write a whole file beside `path` and rename it over `path`; `data` gives the tensors' bytes in their order.

    Raises CapacityExceeded for a full disk, StoreError where the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with GGUFWriter(part, keys, tensors) as writer:
            for piece in data:
                writer.write(piece)
            writer.finish()
        with _named_errors(path):
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


class GGUFWriter:
    """A GGUF in the making, in the file `path`; use it in a `with` statement, which closes it.

    `whole`: how many tensors an interrupted writer of the same keys and tensors completed (its `whole`, after its
    `sync`); they are kept, and writing continues after them. Raises UsageError where the file is another one's.
    """

    def __init__(
        self, path: Path, keys: Mapping[str, Value], tensors: Sequence[TensorPlan], whole: int = 0
    ) -> None:
        self.path, self.tensors, self.whole = path, tuple(tensors), whole
        self._left = 0  # bytes that the current tensor lacks
        header = gguf_header(keys, tensors)
        at = len(header) + sum(_aligned(t.nbytes) for t in self.tensors[:whole])
        with _named_errors(path):
            self._file = path.open("r+b" if whole else "wb")
            try:
                self._begin(header, at)
            except BaseException:
                self._file.close()
                raise
        self._next()

    def _begin(self, header: bytes, at: int) -> None:
        if not self.whole:
            self._file.write(header)
            return
        size = os.fstat(self._file.fileno()).st_size
        if self._file.read(len(header)) != header or size < at:
            raise UsageError(
                f"{self.path} cannot be continued: it is not the beginning of this file",
                "start again without it",
            )
        self._file.truncate(at)
        self._file.seek(at)

    @property
    def nbytes(self) -> int:
        """Bytes written up to now."""
        return self._file.tell()

    def write(self, piece: Bytes) -> None:
        """Append to the current tensor; with its last byte the next one becomes current."""
        data = np.frombuffer(piece, np.uint8).data
        assert data.nbytes <= self._left, f"{self.path}: more bytes than {self.tensors[self.whole]} has"
        with _named_errors(self.path):
            self._file.write(data)
            self._left -= data.nbytes
            if self._left == 0:
                nbytes = self.tensors[self.whole].nbytes
                self._file.write(bytes(_aligned(nbytes) - nbytes))
                self.whole += 1
                self._next()

    def _next(self) -> None:
        self._left = self.tensors[self.whole].nbytes if self.whole < len(self.tensors) else 0

    def sync(self) -> int:
        """Bring what was written to the disk; return how many tensors are whole there."""
        with _named_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.whole

    def finish(self) -> None:
        """Bring the finished file to the disk."""
        missing = [t.name for t in self.tensors[self.whole :]]
        assert not missing, f"{self.path}: {missing} were not written"
        self.sync()

    def close(self) -> None:
        """Close the file, finished or not."""
        with _named_errors(self.path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except (CapacityExceeded, StoreError):
            if error is None:
                raise  # else the first error is what is reported


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one-line errors that name the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CapacityExceeded(
                f"the disk of {path.parent} is full ({error.strerror})",
                "free some space; the same command then continues, or starts again",
            ) from error
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error


# --- values --------------------------------------------------------------------------------------------


def encoded(value: Value) -> bytes:
    """Return a value's type and bytes as a GGUF holds them."""
    if isinstance(value, EncodedValue):
        return value.raw
    if isinstance(value, np.ndarray):
        code = _ARRAYS[value.dtype.newbyteorder("=").str[1:]]
        return (
            struct.pack("<IIQ", _ARRAY, code, value.size)
            + value.astype(value.dtype.newbyteorder("<")).tobytes()
        )
    if isinstance(value, str | bool | int | float):
        kind = _kind(value)
        return struct.pack("<I", kind) + _plain(kind, value)
    kind = _list_kind(value)
    items = b"".join(_plain(kind, item) for item in value)
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items


def _kind(value: bool | int | float | str) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, str):
        return _STRING
    if isinstance(value, float):
        return _F32
    if value < 0:
        return _I32 if value >= -(1 << 31) else _I64
    return _U32 if value < 1 << 32 else _U64


def _list_kind(values: Sequence[Any]) -> int:
    """Choose one type for all; integers are signed ones, as llama.cpp writes them."""
    kinds = {_I32 if kind == _U32 else kind for kind in map(_kind, values)}
    if kinds <= {_I32, _I64, _U64}:
        fits = all(-(1 << 31) <= value < 1 << 31 for value in values)
        return _I32 if fits else _I64
    assert len(kinds) == 1, f"a list of several types: {values[:5]}"
    return kinds.pop()


def _plain(kind: int, value: Any) -> bytes:
    return _text(value) if kind == _STRING else struct.pack(_NUMBERS[kind], value)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _aligned(nbytes: int) -> int:
    return math.ceil(nbytes / DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
