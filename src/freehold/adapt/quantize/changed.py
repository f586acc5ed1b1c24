"""Adapters in a model's weights: each changed matrix is W plus the scaled B A, in floats, computed when it is read.

A changed file reads as the model's own does, so all that reads a model quantises, calibrates and runs it. Knows an
adapter's pairs and how files lay matrices; knows no type that is written, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.training.packed import places
from freehold.adapt.training.parents import FixedPair, Place, fixed_pairs
from freehold.base.errors import UnsupportedModel
from freehold.run.formats import GGUFFile, QuantType, Tensor, open_lora, open_model_file
from freehold.run.formats.filemap import TensorFile
from freehold.run.models.binding.bind import Source, read_source
from freehold.run.models.binding.binder import Joined, RowCut, Stored
from freehold.run.models.load import LoadedModel
from freehold.run.models.lora import Adapter, pack_pairs

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Index = NDArray[np.int64]


# --- the adapters of a model, added up -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class AdapterSum:
    """What all adapters together add to each matrix. `paths`, `digests`: of the adapters, in order."""

    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    pairs: Mapping[Place, tuple[FixedPair, ...]]
    names: Mapping[Place, str]  # of the changed weights, as the model's file spells them
    context: int  # of the model

    @classmethod
    def of(cls, paths: Sequence[Path], source: Source) -> AdapterSum:
        """Read adapters for a model. Raises BadModelFile and UnsupportedModel for one that is not of it."""
        files = [open_lora(path) for path in paths]
        pairs: dict[Place, tuple[FixedPair, ...]] = {}
        for file in files:
            for place, pair in fixed_pairs(file, source).pairs.items():
                pairs[place] = (*pairs.get(place, ()), pair)
        names = {
            (each.layer, each.key): each.gguf if source.gguf else f"{each.module}.weight"
            for each in places(source)
        }
        return cls(tuple(paths), tuple(file.digest for file in files), pairs, names, source.cfg.context)

    def packed(self, model: LoadedModel) -> Adapter:
        """Pack the sum for the engine, as one adapter: [A1; A2] and [s1 B1, s2 B2]."""
        both = {
            self.names[place]: (
                np.concatenate([pair.a for pair in pairs]),
                np.concatenate([pair.b * np.float32(pair.scale) for pair in pairs], axis=1),
            )
            for place, pairs in self.pairs.items()
        }
        return pack_pairs(both, 1.0, model, " and ".join(path.name for path in self.paths))


# --- tensors that are changed --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class RowChange:
    """What some rows of a stored tensor gain: the sum of scale * B A. `rows`: of the tensor, flattened."""

    rows: Index
    pairs: tuple[FixedPair, ...]

    def add_to(self, values: F32) -> None:
        """Add it to the tensor's values, float32 [N, K]."""
        for pair in self.pairs:
            values[self.rows] += (pair.b * np.float32(pair.scale)) @ pair.a


class ChangedTensor(Tensor):
    """A tensor with what adapters add to it, as float32. Its values are computed anew each time they are asked for."""

    __slots__ = ("_changes", "stored")
    stored: Tensor
    _changes: tuple[RowChange, ...]

    def __init__(self, stored: Tensor, changes: Sequence[RowChange]) -> None:
        for name, value in (("name", stored.name), ("type", QuantType.F32), ("shape", stored.shape)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "stored", stored)
        object.__setattr__(self, "_changes", tuple(changes))

    @property
    def raw(self) -> U8:  # type: ignore[override]
        """The values' bytes."""
        return self.numpy().reshape(-1).view(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return 4 * int(np.prod(self.shape))

    @property
    def rows(self) -> U8:
        """The values' bytes in rows."""
        return self.numpy().reshape(-1, self.shape[-1]).view(np.uint8)

    @property
    def table(self) -> None:
        """Floats have none."""
        return None

    def numpy(self) -> F32:
        """Compute the values: a fresh float32 array."""
        values = self.stored.numpy()
        flat = values.reshape(-1, self.shape[-1])
        for change in self._changes:
            change.add_to(flat)
        return values


def changed_tensors(source: Source, adapters: AdapterSum) -> dict[str, ChangedTensor]:
    """Return the stored tensors that adapters change, by name. Raises UnsupportedModel for one that is not written."""
    stored: dict[str, Tensor] = {}
    changes: dict[str, list[RowChange]] = {}
    for (layer, key), pairs in adapters.pairs.items():
        for tensor, rows, own in _leaves(source.layers[layer][key].tensor):
            cut = tuple(FixedPair(pair.a, pair.b[own], pair.scale) for pair in pairs)
            stored[tensor.name] = tensor
            changes.setdefault(tensor.name, []).append(RowChange(rows, cut))
    return {name: ChangedTensor(stored[name], each) for name, each in changes.items()}


def _leaves(stored: Stored) -> Iterator[tuple[Tensor, Index, Index]]:
    """Yield the tensors of a file that a weight lies in: rows of the tensor, and which rows of the weight they are."""
    if isinstance(stored, Tensor):
        rows = np.arange(int(np.prod(stored.shape[:-1])))
        yield stored, rows, rows
    elif isinstance(stored, RowCut):
        for tensor, rows, own in _leaves(stored.whole):
            places_in = np.full(int(np.prod(stored.whole.shape[:-1])), -1, np.int64)
            places_in[own] = rows
            chosen = places_in[stored.index]
            yield tensor, chosen[chosen >= 0], np.flatnonzero(chosen >= 0)
    elif isinstance(stored, Joined):
        first = 0
        for each in stored.each:
            for tensor, rows, own in _leaves(each):
                yield tensor, rows, own + first
            first += each.shape[0]
    else:
        raise UnsupportedModel(
            f"{stored.name} is stored as codes with scales of their own, into which no adapter is fused",
            "use the model's weights in BF16 or F16, or as a GGUF",
        )


# --- a file whose tensors are changed ------------------------------------------------------------------


class FusedFile(GGUFFile):
    """A GGUF with adapters in its weights. Closing it closes the model's file."""

    def __init__(self, opened: GGUFFile, adapters: AdapterSum, changed: Mapping[str, ChangedTensor]) -> None:
        TensorFile.__init__(self, opened.path, opened.paths, {**opened.tensors, **changed})
        self.version, self.metadata = opened.version, opened.metadata
        self.encoded = MappingProxyType(dict(opened.encoded))
        self.adapters, self._opened = adapters, opened

    def check_whole(self) -> None:
        """Raise BadModelFile if the model's file was cut short since it was opened."""
        self._opened.check_whole()

    def close(self) -> None:
        """Let go of the tensors, the model's too."""
        super().close()
        self._opened.close()


def fused_file(opened: GGUFFile, paths: Sequence[Path]) -> FusedFile:
    """Put adapters into an open model. Raises what AdapterSum.of and changed_tensors raise; the file stays open."""
    source = read_source(opened)
    adapters = AdapterSum.of(paths, source)
    return FusedFile(opened, adapters, changed_tensors(source, adapters))


def read_adapters(model: Path, paths: Sequence[Path]) -> AdapterSum:
    """Read the adapters of a model that is not open. Raises what AdapterSum.of raises."""
    with closing(open_model_file(model)) as opened:
        return AdapterSum.of(paths, read_source(opened))


def own_type(tensor: Tensor) -> QuantType:
    """Return the type that a tensor has in its model's file."""
    return tensor.stored.type if isinstance(tensor, ChangedTensor) else tensor.type
