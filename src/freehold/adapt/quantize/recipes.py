"""Which type each tensor of a GGUF gets under a file type such as Q4_K_M, and what it falls back to.

The rules are llama.cpp's (its llama-quant source of 2026-11), so that a file type means the same here: attention
values and an MLP's output get more bits, the head Q6_K, small and one-dimensional tensors keep theirs. Knows names
and shapes; reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from freehold.base.errors import BadModelFile, UsageError
from freehold.run.formats import GGUFFile, QuantType, Tensor
from freehold.run.formats.weight_types import TABLE_TYPES, row_bytes

T = QuantType


class FileType(NamedTuple):
    """A named mix: GGUF's general.file_type, and the type that most matrices get."""

    id: int
    base: QuantType


FILE_TYPES = {
    "F16": FileType(1, T.F16),
    "Q4_0": FileType(2, T.Q4_0),
    "Q4_1": FileType(3, T.Q4_1),
    "Q8_0": FileType(7, T.Q8_0),
    "Q5_0": FileType(8, T.Q5_0),
    "Q5_1": FileType(9, T.Q5_1),
    "Q2_K": FileType(10, T.Q2_K),
    "Q3_K_S": FileType(11, T.Q3_K),
    "Q3_K_M": FileType(12, T.Q3_K),
    "Q3_K_L": FileType(13, T.Q3_K),
    "Q4_K_S": FileType(14, T.Q4_K),
    "Q4_K_M": FileType(15, T.Q4_K),
    "Q5_K_S": FileType(16, T.Q5_K),
    "Q5_K_M": FileType(17, T.Q5_K),
    "Q6_K": FileType(18, T.Q6_K),
    "IQ4_NL": FileType(25, T.IQ4_NL),
    "IQ4_XS": FileType(30, T.IQ4_XS),
    "BF16": FileType(32, T.BF16),
    "T2": FileType(T.T2, T.T2),
    "T3": FileType(T.T3, T.T3),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
FLOATS = (T.F32, T.F16, T.BF16)

# What a type of 256 weights a block becomes in rows that 256 does not divide.
_FALLBACK = {
    T.IQ4_XS: T.IQ4_NL,
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
WRITTEN = frozenset((*(kind.base for kind in FILE_TYPES.values()), *_FALLBACK.values(), T.F32))

# Parts of names of two-dimensional tensors that keep their type: routers, norms, convolutions, small projections.
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
)
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class TensorChoice:
    """A tensor and the type it gets. `wanted`: what the recipe says; another one where its rows cannot take that."""

    tensor: Tensor
    type: QuantType
    wanted: QuantType

    @property
    def fell_back(self) -> bool:
        """Whether the rows could not take the type that was wanted."""
        return self.type is not self.wanted

    @property
    def changes(self) -> bool:
        """Whether its weights are encoded anew; else its bytes are copied."""
        return self.type is not self.tensor.type


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """What the rules ask of a model."""

    layers: int
    kv_group: int  # query heads that share a key head
    experts: int
    tied: bool  # the embedding is the head too
    large: bool  # llama's and Qwen2's 70B, whose eight query heads share attention values

    @classmethod
    def of(cls, source: GGUFFile) -> RecipeFacts:
        """Read it from a file's metadata."""
        meta, name = source.metadata, source.architecture
        layers = meta.get_int(f"{name}.block_count", 0)
        group = max(
            _first(source, "attention.head_count") // max(_first(source, "attention.head_count_kv"), 1), 1
        )
        experts = meta.get_int(f"{name}.expert_count", 0)
        large = layers == 80 and name in ("llama", "qwen2") and group > 1
        return cls(layers, group, experts, "output.weight" not in source.tensors, large)


def _first(source: GGUFFile, key: str) -> int:
    """Return a count, or the first layer's where each layer has its own."""
    value = source.metadata.get(f"{source.architecture}.{key}", 0)
    return int(value) if isinstance(value, int) else int(next(iter(value)))  # type: ignore[call-overload]


def file_type(name: str) -> tuple[str, FileType]:
    """Find a file type by its name. Raises UsageError with those that are written."""
    name = ALIASES.get(name.upper(), name.upper())
    if name not in FILE_TYPES:
        raise UsageError(
            f"{name} is not a type that is written", f"write one of {', '.join(sorted(FILE_TYPES))}"
        )
    return name, FILE_TYPES[name]


def quantisable(tensor: Tensor) -> bool:
    """Tell whether a tensor is a matrix whose weights may be rounded; all else is copied as it is."""
    name = tensor.name
    matrix = sum(dim > 1 for dim in tensor.shape) > 1 and name.endswith("weight")
    return matrix and name not in _KEPT_NAMES and not any(part in name for part in _KEPT)


def choose(source: GGUFFile, name: str, *, weighted: bool = False) -> list[TensorChoice]:
    """Choose each tensor's type under the file type `name`, in the file's order; `weighted`: by a calibration."""
    name, kind = file_type(name)
    tensors = in_layer_order(source.tensors.values())
    values = [t.name for t in tensors if _is_value(t.name)]  # attention values, which some rules count
    rules = _Rules(name, kind.base, RecipeFacts.of(source), weighted, values)
    choices = []
    for tensor in tensors:
        wanted = rules.wanted(tensor)
        fits = tensor.type if wanted is None else fitting(tensor, wanted)
        choices.append(TensorChoice(tensor, fits, fits if wanted is None else wanted))
    return choices


def in_layer_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors by layer, those of no layer first, otherwise as they come."""
    return sorted(tensors, key=lambda t: layer_of(t.name))


def layer_of(name: str) -> int:
    """Return the layer that a tensor's name states, -1 for none."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def fitting(tensor: Tensor, wanted: QuantType) -> QuantType:
    """Return `wanted`, or what llama.cpp writes instead where the tensor's rows do not divide into its blocks."""
    columns = tensor.shape[-1]
    if divides(wanted, columns):
        return wanted
    narrow = _FALLBACK.get(wanted, T.F16)
    return narrow if divides(narrow, columns) else T.F16


def divides(type: QuantType, columns: int) -> bool:
    """Tell whether rows of `columns` weights can be of this type."""
    try:
        return row_bytes(type, columns) > 0
    except BadModelFile:
        return False


def _is_value(name: str) -> bool:
    return any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))


def _more_bits(i: int, count: int) -> bool:
    """Tell whether layer `i` is among those that err most: the first and last eighth, and every third between."""
    return i < count // 8 or i >= 7 * count // 8 or (i - count // 8) % 3 == 2


@dataclass(frozen=True, slots=True)
class _Rules:
    name: str
    base: QuantType
    model: RecipeFacts
    weighted: bool
    values: list[str]

    def wanted(self, tensor: Tensor) -> QuantType | None:
        """Return the type a tensor should get; None: its own."""
        if not quantisable(tensor):
            return None
        if self.base in FLOATS:
            return self.base
        name = tensor.name
        if name == "output.weight" or (self.model.tied and name in _EMBEDDINGS):
            return self._head(tensor)
        if name in _EMBEDDINGS:
            return self._head(tensor) if self.base in TABLE_TYPES else self.base
        if _is_value(name):
            return self._value(name)
        if "attn_k.weight" in name:
            return T.Q8_0 if self.model.experts == 8 else self.base
        if "ffn_down" in name:
            return self._down(layer_of(name))
        return self._output() if "attn_output.weight" in name else self.base

    def _head(self, tensor: Tensor) -> QuantType:
        wanted = T.Q6_K if self.base in TABLE_TYPES else self.base
        return T.Q6_K if divides(wanted, tensor.shape[-1]) and wanted is not T.Q8_0 else T.Q8_0

    def _value(self, name: str) -> QuantType:
        if self.model.experts == 8:
            return T.Q8_0
        i, count = self.values.index(name), len(self.values)
        shared = self.model.kv_group >= 4
        types = {
            "Q2_K": T.Q4_K if shared else T.Q3_K,
            "Q3_K_M": T.Q5_K if i < 2 else T.Q4_K,
            "Q3_K_L": T.Q5_K,
            "Q4_K_S": T.Q5_K if i < 4 else T.Q4_K,
            "Q4_K_M": T.Q6_K if _more_bits(i, count) else T.Q4_K,
            "Q5_K_M": T.Q6_K if _more_bits(i, count) else T.Q5_K,
            "IQ4_NL": T.Q5_K if shared else T.IQ4_NL,
            "IQ4_XS": T.Q5_K if shared else T.IQ4_XS,
        }.get(self.name, self.base)
        return T.Q5_K if self.model.large and types in (T.Q3_K, T.Q4_K) else types

    def _down(self, i: int) -> QuantType:
        count = self.model.layers
        first = i < count // 8
        types = {
            "Q2_K": T.Q3_K,
            "Q3_K_M": T.Q5_K if i < count // 16 else T.Q4_K,
            "Q3_K_L": T.Q5_K,
            "Q4_K_S": T.Q5_K if first else T.Q4_K,
            "Q4_K_M": T.Q6_K if _more_bits(i, count) else T.Q4_K,
            "Q5_K_M": T.Q6_K if _more_bits(i, count) else T.Q5_K,
        }
        if first and self.weighted:
            types |= {"Q4_0": T.Q4_1, "Q5_0": T.Q5_1}
        if first and not self.weighted:
            types |= {"IQ4_NL": T.Q5_K, "IQ4_XS": T.Q5_K}
        return types.get(self.name, self.base)

    def _output(self) -> QuantType:
        if self.model.experts == 8:
            finer = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return T.Q5_K if self.name in finer else self.base
        return {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K}.get(self.name, self.base)
