"""Second moments of what each matrix of a model multiplies, from texts: a layer at a time, so that one layer
lies in floats.

A layer's moments come from streams that have passed the layers before it as those now are: quantised, where
the caller said so.
Wide inputs get their moments in blocks along the diagonal. Knows texts as ids; knows no quantised type and no
file but the model.
Path: adapt.quantize -> calibrate -> LayerStreams.run -> Gathered.add
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.quantize.feedback import DAMPING, Feedback, feedback
from freehold.adapt.quantize.streams import LayerMatrix, LayerStreams
from freehold.models.binding.bind import Source

F32 = NDArray[np.float32]

WIDEST = 2560  # of a block of moments: a wider input's are in several
_UNIT = 128  # of a block's width, which the encoder's batches have
_ROWS = 2048  # rows that are multiplied at once


@dataclass(slots=True)
class Moments:
    """Blocks along the diagonal of the sum of x x^T, float32 [width, width] each, and the number of x."""

    blocks: list[F32]
    count: int = 0
    _fed: tuple[float, Feedback] | None = field(default=None, repr=False)

    @classmethod
    def of_width(cls, columns: int, widest: int = WIDEST) -> Moments:
        """Make zeros for inputs of this width."""
        width = block_width(columns, widest)
        edges = [*range(0, columns, width), columns]
        return cls([np.zeros((b - a, b - a), np.float32) for a, b in pairwise(edges)])

    def add(self, x: F32) -> None:
        """Add rows [T, columns]."""
        first, self._fed = 0, None
        for h in self.blocks:
            part = np.ascontiguousarray(x[:, first : first + len(h)])
            h += part.T @ part
            first += len(h)
        self.count += len(x)

    def means(self) -> list[F32]:
        """Return the blocks as means."""
        return [h / np.float32(max(self.count, 1)) for h in self.blocks]

    def feedback(self, damping: float = DAMPING) -> Feedback:
        """Factor the means; the newest factors are kept for the matrices that share them."""
        if self._fed is None or self._fed[0] != damping:
            self._fed = (damping, feedback(self.means(), damping))
        return self._fed[1]


def block_width(columns: int, widest: int = WIDEST) -> int:
    """Choose the width of blocks: the whole, or a multiple of 128 with as even a share as there is."""
    if columns <= widest:
        return columns
    blocks = -(-columns // widest)
    return -(-columns // blocks // _UNIT) * _UNIT


@dataclass(slots=True)
class Gathered:
    """Moments of a layer's inputs while texts pass; matrices that read the same input share them."""

    widest: int = WIDEST
    moments: dict[str, Moments] = field(default_factory=dict)
    _waiting: dict[tuple[str, ...], list[F32]] = field(default_factory=dict)

    def add(self, names: tuple[str, ...], x: F32) -> None:
        """Take rows that these matrices multiply."""
        rows = self._waiting.setdefault(names, [])
        rows.append(x)
        if sum(len(x) for x in rows) >= _ROWS:
            self._multiply(names)

    def finish(self) -> Mapping[str, Moments]:
        """Multiply what waits, and return the moments by a matrix's name."""
        for names in self._waiting:
            self._multiply(names)
        return self.moments

    def _multiply(self, names: tuple[str, ...]) -> None:
        rows = self._waiting[names]
        if not rows:
            return
        if names[0] not in self.moments:
            self.moments.update(dict.fromkeys(names, Moments.of_width(rows[0].shape[1], self.widest)))
        self.moments[names[0]].add(np.concatenate(rows))
        rows.clear()


@dataclass(slots=True)
class CalibratedLayer:
    """A layer whose matrices are in floats while the caller has it."""

    number: int
    moments: Mapping[str, Moments]  # by the matrix' name
    held: Mapping[str, Moments]  # the same of the texts that are held out
    _matrices: Mapping[str, LayerMatrix]

    @property
    def names(self) -> list[str]:
        """Names of the matrices with moments."""
        return [name for name in self._matrices if name in self.moments]

    def weights(self, name: str) -> F32:
        """Return a matrix in floats, [N, K]."""
        return self._matrices[name].dense()

    def feedback(self, name: str, damping: float = DAMPING) -> Feedback:
        """Return what the matrix' moments make of errors, for trellis.encode."""
        return self.moments[name].feedback(damping)

    def replace(self, name: str, values: F32) -> None:
        """Let later layers see what these values make of the streams."""
        self._matrices[name].hold(values)


def calibrate(
    source: Source,
    texts: Sequence[Sequence[int]],
    spool: Path,
    *,
    held: Sequence[bool] = (),
    widest: int = WIDEST,
    follow: bool = False,
) -> Iterator[CalibratedLayer]:
    """Yield every layer with its inputs' moments over `texts`, in order.

    With `follow`, the streams pass a layer once more when the caller asks for the next, as the caller left it
    (CalibratedLayer.replace); without, later layers see what the model itself makes, in half the time. `spool` is a
    file for the streams: four bytes for each token and hidden dimension. `held` says which texts are held out.
    """
    streams = LayerStreams(source, texts, spool)
    try:
        for number in range(len(source.network.layers)):
            matrices = streams.matrices(number)
            for w in matrices:
                w.hold()
            gathered, beside = Gathered(widest), Gathered(widest)
            records = [(beside if out else gathered).add for out in held or [False] * len(texts)]
            streams.run(number, records, advance=not follow)
            named = {w.name: w for w in matrices}
            yield CalibratedLayer(number, gathered.finish(), beside.finish(), named)
            if follow:
                streams.run(number)
            for w in matrices:
                w.drop()
    finally:
        streams.close()
        spool.unlink(missing_ok=True)
