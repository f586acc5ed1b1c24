"""Low-rank pairs beside packed matrices: W x becomes W x + alpha / rank * B (A x).

Knows which declared weights take a pair, how both formats name them, and how A begins; knows no loss and no file.
Source: arXiv 2106.09685 (LoRA); A begins as PEFT draws it, uniform within 1 / sqrt(inputs), B as zero.
Path: trainee.Trainee.open -> attach -> AdaptedMatrix -> graph.TorchOps
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from freehold.adapt.training.packed import PackedMatrix
from freehold.models.binding.bind import Source
from freehold.models.binding.binder import GGUF_LAYERS
from freehold.models.family import TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AdaptedPlace:
    """A declared weight that an adapter changes."""

    layer: int
    key: str
    spec: TensorSpec
    module: str  # its name in safetensors, without ".weight"
    gguf: str  # its tensor's name in a GGUF


@dataclass(frozen=True, slots=True, eq=False)
class AdapterPair:
    """A [rank, columns] and B [rows, rank], trained in float32. Rows of B lie as the base's file has them."""

    place: AdaptedPlace
    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scale: float


class AdaptedMatrix:
    """A packed matrix with the pair beside it, if it has one."""

    def __init__(self, packed: PackedMatrix, pair: AdapterPair | None = None) -> None:
        self.packed, self.pair = packed, pair

    def product(self, x: torch.Tensor, *, adapter: bool) -> torch.Tensor:
        """Return float32 [n, rows] for float32 x [n, columns]."""
        y = self.packed.product(x)
        if not adapter or self.pair is None:
            return y
        return y.add((x @ self.pair.a.T) @ self.pair.b.T, alpha=self.pair.scale)


def places(source: Source) -> Iterator[AdaptedPlace]:
    """Yield the weights of a model that take a pair: every linear that the engine computes with adapters.

    A weight that is only a part of a stored tensor has no name of its own in a saved adapter and takes none.
    """
    for layer, bound in enumerate(source.layers):
        for key, (spec, _) in bound.items():
            hf = next((name for name in spec.hf if isinstance(name, str)), None)
            gguf = next((name for name in spec.gguf if isinstance(name, str)), None)
            if len(spec.shape) == 2 and spec.adaptable and hf and gguf:
                module = f"{source.family.hf_layers}.{layer}.{hf.removesuffix('.weight')}"
                yield AdaptedPlace(layer, key, spec, module, f"{GGUF_LAYERS}.{layer}.{gguf}")


def new_pair(place: AdaptedPlace, number: int, rank: int, alpha: float, seed: int) -> AdapterPair:
    """Draw the pair of the module with this number: the same floats for the same seed on every machine."""
    import torch

    rows, columns = place.spec.shape
    bound = columns**-0.5
    drawn = np.random.default_rng((seed, number)).uniform(-bound, bound, (rank, columns))
    a = torch.nn.Parameter(torch.from_numpy(drawn.astype(np.float32)))
    return AdapterPair(place, a, torch.nn.Parameter(torch.zeros(rows, rank)), alpha / rank)
