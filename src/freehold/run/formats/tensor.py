"""One tensor of a model file, and the open file that holds many.

Knows how to view and decode a tensor's bytes; knows no file format and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from freehold.run.formats.blocks import dequantize
from freehold.run.formats.filemap import check_whole
from freehold.run.formats.trellis import check_table
from freehold.run.formats.weight_types import TABLE_BYTES, TABLE_TYPES, QuantType, row_bytes


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
