"""Second moments of what each matrix of a model multiplies, from texts: a layer at a time, so only one is in floats.

A layer's moments come from streams that have passed the layers before it as those now are: quantised, where the caller
said so. Wide inputs get their moments in blocks along the diagonal. Knows texts as ids; knows no quantised type and no
file but the model.
Path: adapt.quantize -> calibrate -> LayerStreams.run -> Gathered.add
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.quantize.feedback import DAMPING, Feedback, feedback
from freehold.adapt.quantize.kept_layers import KeptLayers, KeptMoments
from freehold.adapt.quantize.streams import LayerMatrix, LayerStreams
from freehold.models.binding.bind import Source

F32 = NDArray[np.float32]
# A layer, how many there are, texts that have passed it, and how many there are.
OnText: TypeAlias = Callable[[int, int, int, int], None]

WIDEST = 2560  # of a block of moments: a wider input's are in several
_UNIT = 128  # of a block's width, which the encoder's batches have
_ROWS = 1024  # rows that are multiplied at once


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

    def add(self, x: F32, *, rough: bool = False, each: Callable[..., Iterable[None]] = map) -> None:
        """Add rows [T, columns]; `rough`: rounded to bfloat16 where that is fast, and not all above the diagonal.

        `each` maps over blocks.
        """
        self._fed = None
        firsts = np.cumsum([0, *map(len, self.blocks)])[:-1].tolist()
        deque(each(partial(_add_block, x, rough), firsts, self.blocks), 0)
        self.count += len(x)

    def complete(self) -> None:
        """Copy what is below the diagonal above it, once all rows are there."""
        for h in self.blocks:
            for first in range(0, len(h), _UNIT):
                part = slice(first, first + _UNIT)
                h[part, part] = np.tril(h[part, part]) + np.tril(h[part, part], -1).T
                h[part, first + _UNIT :] = h[first + _UNIT :, part].T

    def means(self) -> list[F32]:
        """Return the blocks as means."""
        return [h / np.float32(max(self.count, 1)) for h in self.blocks]

    def feedback(self, damping: float = DAMPING) -> Feedback:
        """Factor them; the newest factors are kept for the matrices that share them."""
        if self._fed is None or self._fed[0] != damping:
            self._fed = (damping, feedback(self.blocks, damping))  # sums do: their scale does not count
        return self._fed[1]


def _add_block(x: F32, rough: bool, first: int, h: F32) -> None:
    if rough and native.has_bf16_products():
        native.add_bf16_moments(x, first, h)
    else:
        part = np.ascontiguousarray(x[:, first : first + len(h)])
        h += part.T @ part


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
    rough: bool = False
    each: Callable[..., Iterable[None]] = map  # over blocks of moments
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
            if names[0] in self.moments:
                self.moments[names[0]].complete()
        return self.moments

    def _multiply(self, names: tuple[str, ...]) -> None:
        rows = self._waiting[names]
        if not rows:
            return
        if names[0] not in self.moments:
            self.moments.update(dict.fromkeys(names, Moments.of_width(rows[0].shape[1], self.widest)))
        self.moments[names[0]].add(np.concatenate(rows), rough=self.rough, each=self.each)
        rows.clear()


@dataclass(slots=True)
class CalibratedLayer:
    """A layer, and what its matrices multiplied."""

    number: int
    moments: Mapping[str, Moments]  # by the matrix' name
    held: Mapping[str, Moments]  # the same of the texts that are held out; empty where none are
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
    every: int = 1,
    widest: int = WIDEST,
    follow: bool = False,
    rough: bool = False,
    threads: int = 1,
    kept: KeptLayers | None = None,
    on_text: OnText | None = None,
) -> Iterator[CalibratedLayer]:
    """Yield every layer with its inputs' moments over `texts`, in order.

    With `follow`, the streams pass a layer once more when the caller asks for the next, as the caller left it
    (CalibratedLayer.replace); without, later layers see what the model itself makes, in half the time. `spool` is a
    file for the streams: four bytes for each token and hidden dimension. `held` says which texts are held out of the
    moments of each `every`-th layer. `rough`: multiply in bfloat16 where the processor does so at speed; errors of
    encoding are a hundred times larger. `threads`: texts, and blocks of moments, that are computed side by side, which
    changes no bit. `kept`: where the newest layer's streams and moments stay, and where a run that continues finds
    them: the layers before the wanted one are not run again. `on_text`: called before each text of a layer. Raises
    StoreError where the disk does not take the streams.
    """
    assert not (follow and kept), "streams that follow the caller's changes are not kept"
    layers = len(source.network.layers)
    with ExitStack() as left:
        left.callback(spool.unlink, missing_ok=True)
        streams = LayerStreams(source, texts, spool, rough=rough, threads=threads)
        left.callback(streams.close)
        first = 0 if kept is None else kept.start(streams.nbytes)
        if kept is not None and first > kept.wanted:
            restored = _restored(kept, streams)
            first = first if restored else kept.start(streams.nbytes)  # a damaged file is gone by now
            if restored:
                yield restored
        if kept is not None and first:
            streams.take(kept.streams(first - 1))
        for number in range(first, layers):
            if kept is not None:
                kept.forget(number)
            matrices = streams.matrices(number)
            for w in matrices:
                w.hold()
            gathered, beside = (Gathered(widest, rough, streams.workers.map) for _ in range(2))
            apart = held if number % every == 0 else ()
            records = [(beside if out else gathered).add for out in apart or [False] * len(texts)]
            streams.run(
                number,
                records,
                advance=not follow,
                into=kept.streams(number) if kept else None,
                on_text=partial(on_text, number, layers) if on_text else None,
            )
            if not follow:
                for w in matrices:
                    w.drop()
            named = {w.name: w for w in matrices}
            layer = CalibratedLayer(number, gathered.finish(), beside.finish(), named)
            if kept is not None:
                kept.keep(number, [*_shared(layer.moments, apart=False), *_shared(layer.held, apart=True)])
            yield layer
            if follow:
                streams.run(number)
            for w in matrices:
                w.drop()


def _shared(moments: Mapping[str, Moments], *, apart: bool) -> Iterator[KeptMoments]:
    """Yield moments with the matrices that share them."""
    names: dict[int, list[str]] = {}
    for name, each in moments.items():
        names.setdefault(id(each), []).append(name)
    for each in names.values():
        gathered = moments[each[0]]
        yield KeptMoments(tuple(each), gathered.count, apart, tuple(gathered.blocks))


def _restored(kept: KeptLayers, streams: LayerStreams) -> CalibratedLayer | None:
    """Return the wanted layer as it was kept; None for nothing, or for a damaged file."""
    parts = kept.moments()
    if parts is None:
        return None
    moments: tuple[dict[str, Moments], dict[str, Moments]] = ({}, {})
    for part in parts:
        moments[part.apart].update(dict.fromkeys(part.names, Moments([*part.blocks], part.count)))
    named = {w.name: w for w in streams.matrices(kept.wanted)}
    return CalibratedLayer(kept.wanted, *moments, named)
