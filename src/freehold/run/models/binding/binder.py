"""Declared weights meet a file's tensors: found by name, checked against the shape, cut or joined where files differ.

Knows names, shapes and types; knows no config and no family, reads no weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import QuantType
from freehold.run.models.binding.stored import ExpertStack, Held, Joined, RowCut, Stored, Taken, Whole, scaled
from freehold.run.models.family import Cut, TensorSpec

GGUF_LAYERS = "blk"
GGUF_TOWER_LAYERS = "v.blk"  # of a tower, which a GGUF of its own holds
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
        self.gguf = layers in (GGUF_LAYERS, GGUF_TOWER_LAYERS)
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
