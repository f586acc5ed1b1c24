"""Encodes tensors by what their inputs are like: T2 and T3 so that errors cancel, other types with weighted columns.

Tensors are asked for layer by layer, as the file holds them, so one layer's moments are in memory. A run that
continues passes the texts through the layers that are already written and encodes none of them again.
Path: quantising.quantise -> CalibratedEncoder.pieces -> calibration.calibrate, trellis.encode -> GGUFWriter.write
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from freehold import _native as native
from freehold.adapt.quantize.calibration import CalibratedLayer, Moments, calibrate
from freehold.adapt.quantize.encoding import F32, U8, encoded_pieces
from freehold.adapt.quantize.feedback import DAMPING
from freehold.adapt.quantize.recipes import TensorChoice, layer_of
from freehold.adapt.quantize.trellis import encode
from freehold.formats.trellis import BITS
from freehold.models.binding.bind import Source


class CalibratedEncoder:
    """Gives a tensor's bytes in its chosen type. Use it in a `with` statement: it holds a file of streams."""

    def __init__(
        self,
        source: Source,
        texts: Sequence[Sequence[int]],
        spool: Path,
        threads: native.Threads,
        *,
        damping: float = DAMPING,
    ) -> None:
        self._layers = iter(calibrate(source, texts, spool)) if texts else iter(())
        self._layer: CalibratedLayer | None = None
        self._threads, self._damping = threads, damping

    def pieces(self, choice: TensorChoice) -> Iterable[U8]:
        """Yield a tensor's bytes, in order."""
        if not choice.changes:
            return [choice.tensor.raw]
        moments = self._moments(choice)
        if choice.type in BITS:
            return self._trellis(choice, moments)
        importance = None if moments is None else np.concatenate([np.diag(h) for h in moments.means()])
        return encoded_pieces(choice.tensor, choice.type, self._threads, importance)

    def _trellis(self, choice: TensorChoice, moments: Moments | None) -> Iterator[U8]:
        tensor = choice.tensor
        values: F32 = tensor.numpy().reshape(-1, tensor.shape[-1])
        fed = None if moments is None else moments.feedback(self._damping)
        yield encode(values, fed, BITS[choice.type], self._threads).raw

    def _moments(self, choice: TensorChoice) -> Moments | None:
        """Return the moments of a tensor's inputs; None for one that texts do not reach as a matrix."""
        number = layer_of(choice.tensor.name)
        while number >= 0 and (self._layer is None or self._layer.number < number):
            following = next(self._layers, None)
            if following is None:
                return None
            self._layer = following
        layer = self._layer
        return layer.moments.get(choice.tensor.name) if layer and layer.number == number else None

    def close(self) -> None:
        """Remove the file of streams."""
        close = getattr(self._layers, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
