"""Maps a model file into memory, read-only, and views its tensors; describes a file that is not a model.

Knows paths, bytes and magic numbers, and how to view and decode a tensor's bytes; knows no format beyond its first
bytes and no model. Names a file that has no digest.

A file that is cut short while it is mapped reads as zeros from there on (csrc/memory.cpp), so a caller that has read
one asks `check_whole` afterwards. The store never writes in place: it replaces a file by renaming another over it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from freehold import _native as native
from freehold.base.errors import BadModelFile, ModelNotFound
from freehold.run.formats.blocks import dequantize
from freehold.run.formats.trellis import check_table
from freehold.run.formats.weight_types import TABLE_BYTES, TABLE_TYPES, QuantType, row_bytes

HEAD_BYTES = 256
"""Bytes from the start of a file that `looks_like` needs."""

FETCH_AGAIN = "the download may be incomplete or damaged; fetch the file again"

_MAGICS = (
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint (a pickle, which Freehold never loads)"),
    (b"\x80\x02", "a Python pickle, which Freehold never loads"),
    (b"\x80\x03", "a Python pickle, which Freehold never loads"),
    (b"\x80\x04", "a Python pickle, which Freehold never loads"),
    (b"\x80\x05", "a Python pickle, which Freehold never loads"),
    (b"version https://git-lfs", "a git-lfs pointer: the weights themselves were not fetched"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"lmgg", "a GGML file from before GGUF"),
    (b"fmgg", "a GGML file from before GGUF"),
    (b"tjgg", "a GGML file from before GGUF"),
    (b"algg", "a GGML adapter from before GGUF"),
)
_HINTS = {
    "a git-lfs pointer": "run `git lfs pull` in that repository, or pull the model by name",
    "an HTML page": "a server answered with a web page instead of the file; check the URL and the login",
    "an empty file": FETCH_AGAIN,
    "nothing but zeros": FETCH_AGAIN,
}


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """Map `path` read-only as uint8 [size]. The mapping lives as long as any view of the array.

    Raises ModelNotFound when nothing is there, BadModelFile for an empty file, a directory, a device or
    one that cannot be read.
    """
    fd = _open(path)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            kind = "a directory" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise BadModelFile(f"{path} is {kind}", "give the path of a .gguf or .safetensors file")
        if info.st_size == 0:
            raise not_a_model(path, b"")
        return native.map_file(fd)
    except OSError as error:
        raise cannot_read(path, error) from error
    finally:
        os.close(fd)


@dataclass(slots=True)
class MappedReader:
    """Walks a mapped file of little-endian numbers, and refuses to leave it."""

    path: Path
    data: npt.NDArray[np.uint8]
    at: int = 0

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return the next `size` bytes as a view. Raises BadModelFile where the file ends before them."""
        if size > len(self.data) - self.at:
            raise BadModelFile(
                f"{self.path} ends at byte {len(self.data):,}; {size:,} bytes from {self.at:,} on are missing",
                FETCH_AGAIN,
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        """Return the next unsigned number."""
        return int.from_bytes(self.take(size).tobytes(), "little")


def read_small_file(path: Path, limit: int) -> bytes:
    """Read a whole side file of at most `limit` bytes; raises as `map_file`, and BadModelFile above it."""
    data = map_file(path)
    if data.size > limit:
        raise BadModelFile(f"{path} has {data.size:,} bytes; the limit is {limit:,}")
    whole = data.tobytes()
    check_whole(path, data)
    return whole


def check_whole(path: Path, data: npt.NDArray[np.uint8]) -> None:
    """Raise BadModelFile if what was read of a mapped file may be zeros that were never in it."""
    if native.is_lost(data):
        raise BadModelFile(
            f"{path} was cut short, or the disk failed, while it was read",
            "wait until nothing writes to it; if it is damaged, fetch it again",
        )


def read_head(path: Path) -> bytes:
    """Read the first HEAD_BYTES of a file; raises as `map_file`."""
    return map_file(path)[:HEAD_BYTES].tobytes()


def looks_like(head: bytes) -> str:
    """Say in words what a file that starts with `head` is: 'a zip archive', 'an HTML page', ..."""
    if not head:
        return "an empty file"
    for magic, words in _MAGICS:
        if head.startswith(magic):
            return words
    if not head.strip(b"\0"):
        return "nothing but zeros"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "an HTML page"
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return f"a file that starts with the bytes {head[:8].hex(' ')}"


def not_a_model(path: Path, head: bytes) -> BadModelFile:
    """Build the error for a file that is neither GGUF nor safetensors."""
    words = looks_like(head)
    hint = next((h for start, h in _HINTS.items() if words.startswith(start)), "")
    return BadModelFile(
        f"{path} is not a model file that Freehold reads: it is {words}",
        hint or "Freehold reads GGUF files, and safetensors files or directories",
    )


def shown(name: str) -> str:
    """Quote a name out of a file for an error message, cut to 80 characters."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _open(path: Path) -> int:
    try:
        # Not blocking: a named pipe in a model's place must not hang us.
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(f"{path} does not exist", "check the path") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except ValueError as error:  # a NUL in the path
        raise ModelNotFound(f"{str(path)!r} is not a valid path") from error


def cannot_read(path: Path, error: OSError) -> BadModelFile:
    """Build the error for a path the operating system refuses."""
    return BadModelFile(
        f"{path} cannot be read: {error.strerror or error}", "check its permissions and the disk"
    )


# --- names for the files of a model without a digest, by which what is kept of them is found again --

RACY_S = 2.0  # the coarsest clock of a file system in use (FAT)


def file_identity(paths: Iterable[Path], before: float) -> str:
    """Name files without a known digest by device, inode, size and times of change; "" if that could be wrong.

    Any write, rename or replacement moves the time of change (ctime), which no program can set back. What is not
    seen: other bytes written within the clock's grain of an old write. So files that changed less than
    RACY_S before `before`, the time at which reading them began, have no identity yet and are packed at each load.
    """
    stats = [path.stat() for path in paths]
    racy = any(max(info.st_mtime, info.st_ctime) > before - RACY_S for info in stats)
    return "" if racy else _identity(stats)


def file_facts(paths: Iterable[Path]) -> str:
    """Name files as file_identity does, however new they are: for a word on what was loaded, not for a pack."""
    return _identity([path.stat() for path in paths])


def _identity(stats: Iterable[os.stat_result]) -> str:
    facts = [(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) for info in stats]
    return hashlib.sha256(f"freehold file identity {facts}".encode()).hexdigest()


# --- tensors ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as stored. `shape` is row-major, outermost first: a matrix is [N, K] with K contiguous.

    `raw` is a read-only uint8 [nbytes] view of the mapped file; it keeps the mapping alive.
    """

    name: str
    type: QuantType
    shape: tuple[int, ...]
    raw: npt.NDArray[np.uint8] = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return self.raw.size

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """The rows' bytes as uint8 [N, row_bytes], all outer dimensions flattened into N."""
        k = self.shape[-1] if self.shape else 1
        rows = self.raw[TABLE_BYTES:] if self.type in TABLE_TYPES else self.raw
        return rows.reshape(-1, row_bytes(self.type, k))

    @property
    def table(self) -> npt.NDArray[np.int8] | None:
        """The values that rows of a type with a table are read through. Raises BadModelFile for a bad one."""
        if self.type not in TABLE_TYPES:
            return None
        return check_table(self.raw[:TABLE_BYTES].view(np.int8), self.name)

    def numpy(self) -> npt.NDArray[np.float32]:
        """Decode to a fresh float32 array of `shape`: slow and large, for oracles and small tensors."""
        if not self.raw.size:
            return np.empty(self.shape, np.float32)
        k = self.shape[-1] if self.shape else 1
        return dequantize(self.rows, self.type, k, self.table).reshape(self.shape)


class TensorFile:
    """An open model, all its shards together. Close it, or use it in a `with` statement.

    Arrays taken from it stay valid after `close`: the mapping goes with the last of them.
    """

    def __init__(self, path: Path, paths: tuple[Path, ...], tensors: dict[str, Tensor]) -> None:
        self.path = path
        self.paths = paths
        self.tensors: Mapping[str, Tensor] = MappingProxyType(tensors)

    def check_whole(self) -> None:
        """Raise BadModelFile if a file was cut short since it was opened: what was read of it may be zeros."""
        for tensor in self.tensors.values():
            check_whole(self.path, tensor.raw)

    def close(self) -> None:
        """Let go of the tensors; the files are unmapped once no array of them is in use."""
        self.tensors = MappingProxyType({})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.tensors)} tensors)"
