"""Encodes tensors by what their inputs are like: T2 and T3 so that errors cancel, other types with weighted columns.

Tensors are asked for layer by layer, as the file holds them, so one layer's moments are in memory. A run that
continues takes the newest layer's streams and moments from the folder (kept_layers) and runs no layer again.
Path: quantising.quantise -> CalibratedEncoder.pieces -> calibration.calibrate, trellis.encode -> GGUFWriter.write
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from freehold import _native as native
from freehold.adapt.quantize.calibration import CalibratedLayer, Moments, OnText, calibrate
from freehold.adapt.quantize.damping import choose_damping
from freehold.adapt.quantize.encoding import F32, U8, encoded_pieces
from freehold.adapt.quantize.feedback import DAMPING
from freehold.adapt.quantize.kept_layers import KeptLayers
from freehold.adapt.quantize.recipes import TensorChoice, layer_of
from freehold.adapt.quantize.spent import SpentSeconds
from freehold.adapt.quantize.texts import held_out
from freehold.adapt.quantize.trellis import encode
from freehold.formats.trellis import BITS
from freehold.models.binding.bind import Source

EVERY = 6  # layers that share a damping
LEAST_TEXTS = 9  # of which a third can choose anything


class CalibratedEncoder:
    """Gives a tensor's bytes in its chosen type. Use it in a `with` statement: it holds a file of streams.

    `bits`: of the trellis type that damping is chosen for, by a third of the texts; 0: none is written. Then that third
    counts as the others do. `dampings`: what was chosen, by the layer from which on it holds. `kept`: where the newest
    layer stays for a run that continues; the caller brings a layer's tensors to disk before it asks for the next one's.
    """

    def __init__(
        self,
        source: Source,
        texts: Sequence[Sequence[int]],
        spool: Path,
        threads: native.Threads,
        *,
        bits: int = 0,
        dampings: Mapping[int, float] | None = None,
        spent: SpentSeconds | None = None,
        kept: KeptLayers | None = None,
        on_text: OnText | None = None,
    ) -> None:
        chooses = bits > 0 and len(texts) >= LEAST_TEXTS
        held = held_out(texts) if chooses else ()
        passed = calibrate(
            source,
            texts,
            spool,
            held=held,
            every=EVERY,
            rough=True,
            threads=threads.size,
            kept=kept,
            on_text=on_text,
        )
        self._layers = passed if texts else iter(())
        self._layer: CalibratedLayer | None = None
        self._threads, self._bits = threads, bits if chooses else 0
        self.dampings = dict(dampings or {})
        self._spent = spent or SpentSeconds()

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
        fed = None if moments is None else moments.feedback(self._damping(layer_of(tensor.name)))
        yield encode(values, fed, BITS[choice.type], self._threads).raw

    def _moments(self, choice: TensorChoice) -> Moments | None:
        """Return the moments of a tensor's inputs; None for one that texts do not reach as a matrix."""
        number = layer_of(choice.tensor.name)
        while number >= 0 and (self._layer is None or self._layer.number < number):
            with self._spent.on("calibration"):
                following = next(self._layers, None)
                if following is None:
                    return None
                self._layer = following
                self._settle(following)
        layer = self._layer
        return layer.moments.get(choice.tensor.name) if layer and layer.number == number else None

    def _settle(self, layer: CalibratedLayer) -> None:
        """Choose the damping of every sixth layer by its held-out moments, and let those count from then on."""
        if not self._bits:
            return
        if layer.number % EVERY == 0 and layer.number not in self.dampings:
            errors = choose_damping(layer, self._bits, self._threads)
            self.dampings[layer.number] = min(errors, key=lambda damping: (errors[damping], damping))
        joined: set[int] = set()
        for name, moments in layer.moments.items():
            if id(moments) not in joined and name in layer.held:
                joined.add(id(moments))
                _join(moments, layer.held[name])

    def _damping(self, layer: int) -> float:
        return self.dampings.get(layer - layer % EVERY, DAMPING)

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


def _join(moments: Moments, others: Moments) -> None:
    """Add what other texts gave."""
    for h, more in zip(moments.blocks, others.blocks, strict=True):
        h += more
    moments.count += others.count
