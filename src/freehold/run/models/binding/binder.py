"""Declared weights meet a file's tensors: found by name, checked against the shape, cut or joined where files differ.

What a file holds of a declared weight is a tensor, experts that lie apart, or a part of a tensor that holds several.
Knows names (of MXFP4's, the two that it has), shapes, types and how to cut; knows no config, no family and no kernel,
and reads no weight.

Tensors of a model's own drafting head are found among a file's, and named as a model of one layer has them.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import QuantType, Tensor, dequantize
from freehold.run.formats.fields import Fields
from freehold.run.models.family import Cut, Network, TensorSpec, renamed

# --- what a file holds -----------------------------------------------------------------------------

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


# --- binding ---------------------------------------------------------------------------------------

GGUF_LAYERS = "blk"
GGUF_TOWER_LAYERS = ("v.blk", "a.blk")  # of towers, which a GGUF of their own holds
FLOATS = (QuantType.F32, QuantType.F16, QuantType.BF16, QuantType.F64)

_DIVISORS = {
    "always": "rope_freqs.weight",
    "short": "rope_factors_short.weight",
    "long": "rope_factors_long.weight",
}
# Stored tables of what the config already says, which every reader computes afresh, and a copy of a text model's row.
_DERIVED = re.compile(
    r"(.*\.rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd\.weight|embeddings\.position_ids|v\.token_embd\.img_break)"
)


class Bound(NamedTuple):
    """A declared weight and what a file holds of it."""

    spec: TensorSpec
    tensor: Stored

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with, and so packed."""
        return len(self.spec.shape) > 1


class Binder:
    """Takes tensors by declared name, checks shapes, and knows which ones no declaration took."""

    def __init__(self, tensors: Mapping[str, Held], layers: str) -> None:
        self.gguf = layers in (GGUF_LAYERS, *GGUF_TOWER_LAYERS)
        self._tensors = tensors
        self._taken: set[str] = set()
        self._layers = layers

    def take(self, specs: Mapping[str, TensorSpec], layer: int | None = None) -> dict[str, Bound]:
        """Bind every declared weight that the file has; those that may not be missing are there."""
        prefix = "" if layer is None else f"{self._layers}.{layer}."
        bound: dict[str, Bound] = {}
        for key, spec in specs.items():
            names = self._fitting(prefix, spec, spec.gguf if self.gguf else spec.hf)
            tensor = next(filter(None, (self._find(prefix, name, key, spec) for name in names)), None)
            if tensor is not None:
                bound[key] = Bound(spec, _checked(tensor, spec))
            elif spec.default:
                bound[key] = Bound(spec, bound[spec.default].tensor)
            elif not spec.optional:
                missing = (
                    f" {prefix}{_first(names[0])}" if names else f", {key}, which such a file does not hold,"
                )
                raise BadModelFile(f"tensor{missing} is missing")
        for key, spec in specs.items():
            if spec.beside in bound and key not in bound:
                name = _first((spec.gguf if self.gguf else spec.hf)[0])
                there = bound[spec.beside].tensor.name
                raise BadModelFile(f"tensor {prefix}{name} is missing; the file has {there}")
        for key, (spec, tensor) in bound.items():
            if spec.scaled_by:
                bound[key] = Bound(spec, scaled(tensor, bound[spec.scaled_by].tensor))
        return bound

    def _fitting(self, prefix: str, spec: TensorSpec, names: tuple[str | Cut, ...]) -> tuple[str | Cut, ...]:
        """Leave out names whose tensors have other shapes than they are declared with, where another's has its own."""

        def fits(name: str | Cut) -> bool | None:
            stored, shape = (name, spec.shape) if isinstance(name, str) else (name.name, name.shape)
            tensor = self._tensors.get(prefix + stored) if isinstance(stored, str) else None
            return None if tensor is None else tensor.shape == shape

        known = [fits(name) for name in names] if len(names) > 1 else []
        if True not in known:
            return names
        return tuple(name for name, fit in zip(names, known, strict=True) if fit is not False)

    def _find(self, prefix: str, name: str | Cut, key: str, spec: TensorSpec) -> Stored | None:
        if isinstance(name, str):
            return self._whole(prefix + name, spec.shape)
        if isinstance(name.name, str):
            whole = self._whole(prefix + name.name, name.shape)
        else:
            whole = self._joined(tuple(prefix + each for each in name.name))
        return None if whole is None else _cut(whole, name, key, spec)

    def _joined(self, names: tuple[str, ...]) -> Joined | None:
        if names[0] not in self._tensors:
            return None
        each = self._all(names)
        for tensor in each:
            _check_shape(tensor, (tensor.shape[0], *each[0].shape[1:]))
        return Joined(names[0], _of_one_type(each))

    def _whole(self, name: str, shape: tuple[int, ...]) -> Whole | None:
        if "{e}" not in name:
            self._taken.add(name)
            return self._tensors.get(name)
        if name.replace("{e}", "0") not in self._tensors:
            return None
        each = self._all([name.replace("{e}", str(e)) for e in range(shape[0])])
        for tensor in each:
            _check_shape(tensor, shape[1:])
        return ExpertStack(name.replace("{e}", "*"), _of_one_type(each))

    def _all(self, names: Sequence[str]) -> tuple[Held, ...]:
        for name in names:
            if name not in self._tensors:
                raise BadModelFile(f"tensor {name} is missing")
        self._taken.update(names)
        return tuple(self._tensors[name] for name in names)

    def take_divisors(self, longrope: bool) -> dict[str, Held]:
        """Take the tables that divide rope frequencies, which only a GGUF has; two of them where a rope chooses."""
        names = {side: name for side, name in _DIVISORS.items() if longrope or side == "always"}
        stored = {side: name for side, name in names.items() if self.gguf and name in self._tensors}
        self._taken.update(stored.values())
        return {side: self._tensors[name] for side, name in stored.items()}

    def refuse_rest(self) -> None:
        """Raise for tensors that no declaration took."""
        rest = [n for n in self._tensors if n not in self._taken and not _DERIVED.fullmatch(n)]
        if rest:
            more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
            raise UnsupportedModel(
                f"the file holds tensor {rest[0][:80]}{more}, which the architecture does not have",
                "it is a variant of this architecture that Freehold does not run",
            )


def _first(name: str | Cut) -> str:
    text = name.name if isinstance(name, Cut) else name
    return (text if isinstance(text, str) else text[0]).replace("{e}", "0")


def _cut(whole: Whole, cut: Cut, key: str, spec: TensorSpec) -> Stored:
    """Return the declared part of a stored tensor; of a vector, elements count as rows."""
    name, take, rows = f"{whole.name}:{key}", cut.take, cut.rows
    if take is None or _without_ones(whole.shape) != _without_ones(cut.shape):
        _check_shape(whole, cut.shape)
    if rows is not None and len(cut.shape) > 1:
        return RowCut(name, whole, np.asarray(rows, np.int64), spec.shape)
    if whole.type not in FLOATS and not cut.decode:
        raise UnsupportedModel(
            f"tensor {whole.name} has type {whole.type.name}; only floats are supported there"
        )
    if take is None:
        index = np.asarray(rows, np.int64)
        return Taken(name, whole, lambda values: values[index], spec.shape)
    return Taken(name, whole, take, spec.shape)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the dimensions that all writers keep: there are [C, 1, K] and [C, K], [1, 1, H, 1] and [H, 1]."""
    return tuple(n for n in shape if n != 1)


def _of_one_type(each: tuple[Held, ...]) -> tuple[Held, ...]:
    for tensor in each:
        if tensor.type != each[0].type:
            raise UnsupportedModel(
                f"tensor {tensor.name} has type {tensor.type.name}; {each[0].name} has {each[0].type.name}"
            )
    return each


def _checked(tensor: Stored, spec: TensorSpec) -> Stored:
    """Return a tensor of the declared shape; dimensions of one do not count, as a row may be stored as a vector."""
    if [n for n in tensor.shape if n != 1] != [n for n in spec.shape if n != 1]:
        _check_shape(tensor, spec.shape)
    if spec.floats and tensor.type not in FLOATS:
        raise UnsupportedModel(
            f"tensor {tensor.name} has type {tensor.type.name}; only floats are supported there"
        )
    quantised = tensor.type.name.startswith("IQ") or not tensor.type.name.startswith(("I", "U"))
    if tensor.type not in FLOATS and (len(spec.shape) == 1 or not quantised):
        raise UnsupportedModel(
            f"tensor {tensor.name} has type {tensor.type.name}, which holds no weights here"
        )
    return tensor


def _check_shape(tensor: Stored, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise BadModelFile(
            f"tensor {tensor.name} has shape {list(tensor.shape)}; the config asks for {list(expected)}"
        )


# --- a drafting head's tensors ---------------------------------------------------------------------

LEFT_OUT = "the layers that predict further tokens are left out"
_OWN = re.compile(r"(enorm|hnorm|eh_proj|shared_head|embed_tokens|nextn)\.")  # of a head, beside its layer's
_COPIES = re.compile(r"(shared_head\.head|embed_tokens|nextn\.shared_head_head|nextn\.embed_tokens)\.")
_QWEN = re.compile(r"(model\.)?mtp\.")
_LAYER = "model.layers"


@dataclass(frozen=True, slots=True)
class BoundHead:
    """A drafting head's network, and its weights but those that it shares with the target."""

    network: Network
    ends: Mapping[str, Bound]
    layer: Mapping[str, Bound]


def take_head(
    tensors: Mapping[str, Held], prefix: str, layers: int, drafts: int
) -> tuple[dict[str, Held], dict[str, Held]]:
    """Return a model's tensors, and the first drafting head's under names of a model of one layer.

    `prefix`: what layers' names begin with; `drafts`: how many heads lie after the last layer.
    """
    beyond = tuple(f"{prefix}.{layers + i}." for i in range(drafts))
    rest: dict[str, Held] = {}
    head: dict[str, Held] = {}
    place = GGUF_LAYERS if prefix == GGUF_LAYERS else _LAYER
    for name, tensor in tensors.items():
        if match := _QWEN.match(name):
            inner = name[match.end() :]
            own = f"{place}.0.{inner.removeprefix('layers.0.')}" if inner.startswith("layers.0.") else inner
        elif beyond and name.startswith(beyond[0]):
            inner = name.removeprefix(beyond[0])
            own = inner if _OWN.match(inner) else f"{place}.0.{inner}"
        elif beyond and name.startswith(beyond):
            continue
        else:
            rest[name] = tensor
            continue
        if not own.startswith("layers.") and not _COPIES.match(own):
            head[own] = tensor
    return rest, head


def bind_head(
    network: Network, tensors: Mapping[str, Held], gguf: bool, names: Mapping[str, str]
) -> BoundHead | str:
    """Bind a head's tensors; return why it is left out where one is missing. Raises for others than it declares."""
    binder = Binder(tensors, GGUF_LAYERS if gguf else _LAYER)
    try:
        ends = binder.take(renamed(network.ends.tensors(), names))
        layer = binder.take(network.layers[0].tensors(), 0)
    except BadModelFile as e:
        if "missing" not in e.message:
            raise
        return f"{LEFT_OUT}: {e.message}"
    binder.refuse_rest()
    return BoundHead(network, ends, layer)
