"""The adapter beneath a training: its pairs found in the base by name, checked, and put together with those on top.

Knows both spellings of an adapter's modules and the order of a file's rows; knows no torch, no step and no receipt.
What an adapter changes and a trainer does not compute is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.training.packed import AdaptedPlace, places
from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats import LoraFile, LowRank
from freehold.run.formats.lora import MAX_RANK
from freehold.run.models.binding.bind import Source
from freehold.run.models.binding.binder import GGUF_LAYERS
from freehold.run.models.family import plain_name
from freehold.run.models.lora import in_order_of

F32 = NDArray[np.float32]
Place = tuple[int, str]  # a layer, and the declaration's key in it


@dataclass(frozen=True, slots=True, eq=False)
class FixedPair:
    """What a matrix gains by an adapter that is not trained: scale * B A. Rows and columns as the base's file has them.

    `a` is float32 [rank, K], `b` float32 [N, rank].
    """

    a: F32
    b: F32
    scale: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a)


@dataclass(frozen=True, slots=True, eq=False)
class FixedPairs:
    """An adapter's pairs by place."""

    pairs: Mapping[Place, FixedPair]

    @property
    def rank(self) -> int:
        """The greatest of them."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def scale(self) -> float:
        """The scale that all share, or 2 where they differ: `as_pair` then brings B to it."""
        scales = {pair.scale for pair in self.pairs.values()}
        return scales.pop() if len(scales) == 1 else 2.0

    def as_pair(self, place: Place, rank: int, scale: float) -> tuple[F32, F32] | None:
        """Return A and B of a place at this rank and scale, filled up with zeros; None where it has none.

        The product is the same, to the bit where the scales' ratio is a power of two.
        """
        pair = self.pairs.get(place)
        if pair is None:
            return None
        more = rank - pair.rank
        b = pair.b if pair.scale == scale else pair.b * np.float32(pair.scale / scale)
        return np.pad(pair.a, ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))


def fixed_pairs(file: LoraFile, source: Source) -> FixedPairs:
    """Find each of an adapter's modules in a model. Raises BadModelFile and UnsupportedModel with the module's name."""
    if file.architecture and file.architecture != source.family.gguf_architecture:
        raise BadModelFile(
            f"{file.path} is an adapter for the architecture {file.architecture!r}; "
            f"{source.name} is {source.family.gguf_architecture!r}",
            "name the model that it was trained on",
        )
    by_name = _names(source, gguf=file.gguf)
    pairs: dict[Place, FixedPair] = {}
    for module, low_rank in file.modules.items():
        place = by_name.get(module if file.gguf else plain_name(module))
        if place is None:
            raise UnsupportedModel(
                f"{file.path} changes {module[:80]}, which is not trained in {source.name}",
                "name the model that it was trained on, or an adapter of attention and MLP matrices",
            )
        pairs[place.layer, place.key] = _fixed(file, source, place, low_rank)
    file.check_whole()
    return FixedPairs(pairs)


def _names(source: Source, *, gguf: bool) -> dict[str, AdaptedPlace]:
    """Return each place by every name that adapters may give it."""
    names: dict[str, AdaptedPlace] = {}
    for place in places(source):
        spellings = place.spec.gguf if gguf else place.spec.hf
        outer = GGUF_LAYERS if gguf else source.family.hf_layers
        names |= {f"{outer}.{place.layer}.{name}": place for name in spellings if isinstance(name, str)}
    return names


def _fixed(file: LoraFile, source: Source, place: AdaptedPlace, low_rank: LowRank) -> FixedPair:
    a, b = low_rank.a.numpy(), low_rank.b.numpy()
    stored = source.layers[place.layer][place.key].tensor.shape
    if (b.shape[0], a.shape[1]) != tuple(stored):
        raise BadModelFile(
            f"{file.path} changes {place.module} as a matrix of {b.shape[0]:,} x {a.shape[1]:,}; "
            f"{source.name} has {stored[0]:,} x {stored[1]:,}",
            "name the model that it was trained on",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise BadModelFile(
            f"{file.path} holds NaN or infinity in {place.module}", "its training failed, or it is damaged"
        )
    if file.gguf != source.gguf:
        a, b = in_order_of(place.spec, a, b, to_gguf=source.gguf)
    return FixedPair(np.ascontiguousarray(a), np.ascontiguousarray(b), low_rank.scale)


def stacked(beneath: FixedPairs, place: Place, a: F32, b: F32, scale: float) -> tuple[F32, F32]:
    """Return one pair that is a fixed one and (a, b) on top of it, at the scale of (a, b): [A1; A2], [B1 s1/s2, B2]."""
    rank = beneath.rank
    below = beneath.as_pair(place, rank, scale)
    first_a, first_b = (
        (np.zeros((rank, a.shape[1]), np.float32), np.zeros((len(b), rank), np.float32))
        if below is None
        else below
    )
    return np.concatenate([first_a, a]), np.concatenate([first_b, b], axis=1)


def check_rank(beneath: FixedPairs, rank: int) -> None:
    """Raise UsageError where an adapter and a new one of `rank` on top would exceed what a file may have."""
    if beneath.rank + rank > MAX_RANK:
        raise UsageError(
            f"an adapter of rank {rank} on top of one of rank {beneath.rank} has rank {beneath.rank + rank}; "
            f"an adapter has {MAX_RANK} at most",
            "lower --rank, or train the adapter itself with --continue",
        )
