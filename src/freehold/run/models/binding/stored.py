"""What a file holds of a declared weight: a tensor, experts that lie apart, or a part of a tensor that holds several.

Knows tensors and how to cut them, and of names the two that MXFP4 has; knows no family and no kernel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import QuantType, Tensor, dequantize
from freehold.run.formats.fields import Fields

F32 = NDArray[np.float32]
Table: TypeAlias = NDArray[np.int8] | None  # of a type that is read through one


def flat(table: Table, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a tensor's bytes, as a file holds them."""
    flat = rows.reshape(-1)
    return flat if table is None else np.concatenate([table.view(np.uint8), flat])


class _ByRows(ABC):
    """What does not lie in a file as one tensor, and is read by rows."""

    __slots__ = ()

    @property
    @abstractmethod
    def rows(self) -> NDArray[np.uint8]:
        """The rows as bytes, [N, bytes of a row]."""

    @property
    def table(self) -> Table:
        """The table that rows are read through, where their type has one."""
        return None

    @property
    def raw(self) -> NDArray[np.uint8]:
        """The rows, flat, after their table."""
        return flat(self.table, self.rows)


@dataclass(frozen=True, slots=True)
class _Apart(_ByRows):
    """Tensors of one type that a file holds apart and another as one."""

    name: str
    each: tuple[Held, ...]

    @property
    def type(self) -> QuantType:
        """The type of all."""
        return self.each[0].type

    @property
    def nbytes(self) -> int:
        """Bytes that all take in the file."""
        return sum(t.nbytes for t in self.each)

    @property
    def rows(self) -> NDArray[np.uint8]:
        """A copy of all rows as bytes, one tensor after another."""
        return np.concatenate([t.rows for t in self.each])

    @property
    def table(self) -> Table:
        """The table of all, where their type has one. Raises UnsupportedModel where they differ in it."""
        first, *others = (t.table for t in self.each)
        if first is not None and any(not np.array_equal(first, t) for t in others if t is not None):
            raise UnsupportedModel(
                f"{self.name}: {len(self.each)} tensors that run as one matrix have different tables",
                "quantise the model with one table for all of them, or to another type",
            )
        return first


@dataclass(frozen=True, slots=True)
class ExpertStack(_Apart):
    """Experts that a file holds apart, as the one tensor (experts, rows, columns) that another holds."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Experts first."""
        return (len(self.each), *self.each[0].shape)

    def numpy(self) -> F32:
        """Decode to a fresh float32 array."""
        return np.stack([t.numpy() for t in self.each])


@dataclass(frozen=True, slots=True)
class Joined(_Apart):
    """Tensors that a file holds apart, one below another, as the one that another holds."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The rows of all."""
        return (sum(t.shape[0] for t in self.each), *self.each[0].shape[1:])

    def numpy(self) -> F32:
        """Decode to a fresh float32 array."""
        return np.concatenate([t.numpy() for t in self.each])


@dataclass(frozen=True, slots=True)
class ScaledBlocks(_ByRows):
    """FP8 codes [N, K] and a float32 scale for each block of them: what a matrix stands for, as float32.

    `scales` is [rows of blocks, blocks in a row], or one number for all. Decoded anew at each use.
    """

    codes: Tensor
    scales: Tensor
    block: tuple[int, int]  # rows and columns of a block

    @property
    def name(self) -> str:
        """The matrix's name."""
        return self.codes.name

    @property
    def type(self) -> QuantType:
        """Always float32."""
        return QuantType.F32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the codes."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.codes.nbytes

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The values as rows of bytes."""
        return self.numpy().view(np.uint8)

    def numpy(self) -> F32:
        """Decode to a fresh float32 array."""
        values, scales = self.codes.numpy(), self.scales.numpy()
        if scales.size == 1:
            return values * scales.reshape(())
        (rows, columns), k = self.block, values.shape[1]
        for i, each in enumerate(scales):
            values[i * rows : (i + 1) * rows] *= np.repeat(each, columns)[:k]
        return values


@dataclass(frozen=True, slots=True)
class MicroscaledBlocks(_ByRows):
    """MXFP4 as safetensors hold it: nibbles [..., blocks, 16] of two inputs each, and an exponent for each block.

    Its rows are a GGUF's: the exponent before a block's nibbles, of which low ones are the first sixteen inputs.
    """

    codes: Tensor
    scales: Tensor

    @property
    def name(self) -> str:
        """The codes' name."""
        return self.codes.name

    @property
    def type(self) -> QuantType:
        """Always MXFP4."""
        return QuantType.MXFP4

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that it stands for."""
        return (*self.codes.shape[:-2], self.codes.shape[-2] * 32)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The blocks as rows of bytes, laid anew at each use."""
        packed = self.codes.raw.reshape(-1, 16)
        each = np.stack([packed & 15, packed >> 4], -1).reshape(-1, 32)
        blocks = np.empty((len(packed), 17), np.uint8)
        blocks[:, 0] = self.scales.raw
        blocks[:, 1:] = each[:, :16] | each[:, 16:] << 4
        return blocks.reshape(-1, 17 * self.codes.shape[-2])

    def numpy(self) -> F32:
        """Decode to a fresh float32 array."""
        return dequantize(self.rows, self.type, self.shape[-1]).reshape(self.shape)


Held: TypeAlias = Tensor | ScaledBlocks | MicroscaledBlocks  # under one name in a file
Whole: TypeAlias = Held | ExpertStack | Joined


@dataclass(frozen=True, slots=True)
class RowCut(_ByRows):
    """Some rows of a stored matrix, in an order of their own; exact for every weight type."""

    name: str
    whole: Whole
    index: NDArray[np.int64]  # of rows, all outer dimensions flattened
    shape: tuple[int, ...]

    @property
    def type(self) -> QuantType:
        """The type of the whole."""
        return self.whole.type

    @property
    def nbytes(self) -> int:
        """Bytes that these rows take in the file; counted by shape, as asking some wholes for rows lays them anew."""
        return self.whole.nbytes // max(math.prod(self.whole.shape[:-1]), 1) * len(self.index)

    @property
    def rows(self) -> NDArray[np.uint8]:
        """A copy of the rows as bytes."""
        return self.whole.rows[self.index]

    @property
    def table(self) -> Table:
        """The table of the whole."""
        return self.whole.table

    def numpy(self) -> F32:
        """Decode to a fresh float32 array."""
        return dequantize(self.rows, self.type, self.whole.shape[-1], self.table).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Taken(_ByRows):
    """What a function makes of a stored tensor's values; float32, computed anew at each use."""

    name: str
    whole: Stored
    take: Callable[[F32], F32]
    shape: tuple[int, ...]

    @property
    def type(self) -> QuantType:
        """Always float32."""
        return QuantType.F32

    @property
    def nbytes(self) -> int:
        """Bytes that it stands for."""
        return 4 * int(np.prod(self.shape))

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The values as rows of bytes."""
        return self.numpy().reshape(-1, self.shape[-1]).view(np.uint8)

    def numpy(self) -> F32:
        """Compute the values."""
        array = np.ascontiguousarray(self.take(self.whole.numpy()), np.float32)
        if array.shape != self.shape:
            raise BadModelFile(
                f"tensor {self.name} becomes {list(array.shape)}; the config asks for {list(self.shape)}"
            )
        return array


Stored: TypeAlias = Whole | RowCut | Taken


def scaled(tensor: Stored, factors: Stored) -> Taken:
    """Return a matrix whose rows, or a vector whose elements, are multiplied by a vector's."""

    def take(values: F32) -> F32:
        return values * factors.numpy().reshape(-1, *[1] * (values.ndim - 1))

    return Taken(f"{tensor.name}:scaled", tensor, take, tensor.shape)


# --- experts in MXFP4: nibbles and exponents, two tensors, become one matrix each -------------------
# Source: the OCP microscaling formats specification 1.0 (2023), as gpt-oss's repositories hold them.

_BLOCKS, _SCALES = "_blocks", "_scales"


def is_microscaled(config: Fields) -> bool:
    """Whether a config.json says that its matrices are MXFP4."""
    quantisation = config.section("quantization_config")
    return quantisation is not None and quantisation.get("quant_method") == "mxfp4"


def join_blocks(config: Fields, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Held], tuple[str, ...]]:
    """Return the tensors with nibbles joined to their exponents, under the nibbles' names, and no notes.

    Raises BadModelFile for nibbles without exponents, or with others.
    """
    out: dict[str, Held] = {}
    for name, tensor in tensors.items():
        if name.endswith(_BLOCKS):
            out[name] = _joined(tensor, tensors.get(name.removesuffix(_BLOCKS) + _SCALES))
        elif not (name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in tensors):
            out[name] = tensor
    return out, ()


def _joined(codes: Tensor, scales: Tensor | None) -> MicroscaledBlocks:
    if scales is None:
        raise BadModelFile(f"tensor {codes.name.removesuffix(_BLOCKS)}{_SCALES} is missing")
    for each in (codes, scales):
        if each.type is not QuantType.U8:
            raise BadModelFile(f"tensor {each.name} has type {each.type.name}; MXFP4 is bytes")
    if len(codes.shape) < 3 or codes.shape[-1] != 16:
        raise BadModelFile(f"tensor {codes.name} has shape {list(codes.shape)}; MXFP4 has blocks of 16 bytes")
    if scales.shape != codes.shape[:-1]:
        raise BadModelFile(
            f"tensor {scales.name} has shape {list(scales.shape)}; {codes.name} needs {list(codes.shape[:-1])}"
        )
    return MicroscaledBlocks(codes, scales)
