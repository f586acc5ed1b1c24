"""Second moments of what each matrix of a model multiplies, from texts: a layer at a time, so only one is in floats.

A layer's moments come from streams that have passed the layers before it as those now are: quantised, where the caller
said so. Wide inputs get their moments in blocks along the diagonal. Knows texts as ids; knows no quantised type and no
file but the model.
What a layer left is kept in the run's folder, so a run that continues
begins after it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.adapt.quantize.encoding import DAMPING, Feedback, feedback
from freehold.adapt.run import on_disk, write_whole
from freehold.base.errors import UsageError
from freehold.base.layers import pages_of
from freehold.run.models.binding.bind import Source, assemble
from freehold.run.models.binding.binder import Stored
from freehold.run.models.family import NetworkWeights, Ops
from freehold.run.models.oracle.arithmetic import visible
from freehold.run.models.oracle.session import DenseMatrix, KvStore, NumpyOps

# --- streams and moments of layers that texts have passed, in a run's folder ------------------------
#     passed-7.streams     what texts are after layer 7; of the newest two layers
#     passed-7.moments     the moments of layer 7, until its tensors are on disk
# Each is written beside and renamed, so a kill leaves the layer before.
# of a layer's moments; a larger layer's are computed once more from the streams before it
MOST_BYTES = 1 << 30
_WHAT = "/what"  # the member that says which matrices share which moments, and how many inputs they saw
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile)


@dataclass(frozen=True, slots=True)
class KeptMoments:
    """Moments that some matrices share. `apart`: those of the texts that are held out."""

    names: tuple[str, ...]
    count: int
    apart: bool
    blocks: tuple[F32, ...]


@dataclass(frozen=True, slots=True)
class KeptLayers:
    """The layers in `folder`. `wanted`: the layer whose tensors are encoded next; those before it are on disk."""

    folder: Path
    wanted: int = 0

    def streams(self, layer: int) -> Path:
        """Return where the streams after a layer lie."""
        return self.folder / f"passed-{layer}.streams"

    def start(self, nbytes: int) -> int:
        """Return the first layer to run: streams of `nbytes` have passed those before it. 0: none are kept."""
        sized = [n for n in self._numbers(".streams") if self.streams(n).stat().st_size == nbytes]
        if self.wanted in sized and self._moments(self.wanted).is_file():
            return self.wanted + 1
        return max((n + 1 for n in sized if n < self.wanted), default=0)

    def moments(self) -> list[KeptMoments] | None:
        """Return what is kept of the wanted layer; None for nothing, or for a damaged file."""
        try:
            with self._moments(self.wanted).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                what = json.loads(file[_WHAT].tobytes())
                return [
                    KeptMoments(
                        tuple(each["names"]),
                        int(each["count"]),
                        bool(each["apart"]),
                        tuple(file[f"{i}.{b}"] for b in range(each["blocks"])),
                    )
                    for i, each in enumerate(what)
                ]
        except _DAMAGED:
            self._moments(self.wanted).unlink(missing_ok=True)
            return None

    def keep(self, layer: int, moments: list[KeptMoments]) -> None:
        """Keep a layer's moments beside its streams. Raises StoreError where the disk does not take them."""
        if sum(block.nbytes for each in moments for block in each.blocks) > MOST_BYTES:
            return
        what = [
            {"names": m.names, "count": m.count, "apart": m.apart, "blocks": len(m.blocks)} for m in moments
        ]
        members: Mapping[str, Any] = {
            f"{i}.{b}": block for i, m in enumerate(moments) for b, block in enumerate(m.blocks)
        }
        named = cast("dict[str, Any]", {_WHAT: np.frombuffer(json.dumps(what).encode(), np.uint8), **members})
        path = self._moments(layer)
        with on_disk(path):
            write_whole(path, lambda file: np.savez(file, **named))

    def forget(self, layer: int) -> None:
        """Remove what no longer counts once the tensors of the layers before `layer` are on disk."""
        for n in self._numbers(".moments"):
            if n < layer:
                self._moments(n).unlink()
        for n in self._numbers(".streams"):
            if n < layer - 1:
                self.streams(n).unlink()

    def clear(self) -> None:
        """Remove everything, a half-written file too."""
        for path in self.folder.glob("passed-*"):
            path.unlink()

    def _moments(self, layer: int) -> Path:
        return self.folder / f"passed-{layer}.moments"

    def _numbers(self, suffix: str) -> Iterator[int]:
        for path in [*self.folder.glob(f"passed-*{suffix}")]:
            number = path.name.removeprefix("passed-").removesuffix(suffix)
            if number.isdigit():
                yield int(number)


F32 = NDArray[np.float32]


# --- second moments of inputs, layer by layer -------------------------------------------------------

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


# --- runs texts through a model in floats -----------------------------------------------------------
# A layer at a time: a layer's weights are decoded once for all texts.
# Between two layers, the residual streams are in a file.

# Names of matrices, and rows [T, K] that they multiply.
Record: TypeAlias = Callable[[tuple[str, ...], F32], None]


class LayerMatrix(DenseMatrix):
    """A matrix that is decoded while its layer runs, and may then be another's values."""

    def __init__(self, tensor: Stored) -> None:
        super().__init__(tensor, keep=False)
        self.name = tensor.name

    def hold(self, values: F32 | None = None) -> None:
        """Decode, or take these values instead."""
        self._dense = self._decoded() if values is None else values

    def drop(self) -> None:
        """Let the values go."""
        self._dense = None


class RoughMatrix(LayerMatrix):
    """A matrix that multiplies in bfloat16 where the processor does so at speed: calibration sees no difference."""

    def times(self, x: F32) -> F32:
        """Multiply rows [T, columns], rounded as the matrix is; sums are in float32."""
        if self._dense is None or not native.has_bf16_products():
            return super().times(x)
        return native.bf16_product(np.ascontiguousarray(x), self._dense)


class RecordingOps(NumpyOps):
    """NumpyOps that pass on what each matrix multiplies, with attention by matrix products in float32."""

    def __init__(self, tokens: NDArray[np.integer], source: Source, record: Record | None) -> None:
        specs = [layer.keeps for layer in source.network.layers]
        super().__init__(tokens, KvStore(len(pages_of(specs)), False), specs)
        self._record = record

    def linear(
        self,
        x: F32,
        weights: Sequence[DenseMatrix],
        biases: Sequence[F32 | None],
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> list[F32]:
        """Record the input after its norm."""
        n = x if norm is None else self.norm(x, norm, eps)
        self._note(weights, n)
        return super().linear(n, weights, biases)

    def linear_add(
        self,
        x: F32,
        weight: DenseMatrix,
        residual: F32,
        bias: F32 | None = None,
        gate: F32 | None = None,
        scale: float = 1.0,
    ) -> None:
        """Record the input over the size of the stream that it is added to, as the norms after it divide an error.

        Without that the few tokens whose stream is a thousand times the others' (the first, as a rule) decide.
        """
        super().linear_add(x, weight, residual, bias, gate, scale)
        size = np.sqrt(np.mean(np.square(residual), axis=1, keepdims=True)) + np.float32(1e-6)
        self._note((weight,), x / size)

    def linear_act(
        self,
        x: F32,
        weight: DenseMatrix,
        act: str,
        bias: F32 | None = None,
        norm: F32 | None = None,
        eps: float = 0.0,
    ) -> F32:
        """Record the input after its norm."""
        n = x if norm is None else self.norm(x, norm, eps)
        self._note((weight,), n)
        return super().linear_act(n, weight, act, bias)

    def gated(
        self,
        x: F32,
        gate: DenseMatrix,
        up: DenseMatrix,
        act: str,
        norm: F32 | None = None,
        eps: float = 0.0,
        limit: float = 0.0,
    ) -> F32:
        """Gate in place where the activation is SiLU: these are the widest arrays of a layer."""
        if act != "silu" or limit:
            return super().gated(x, gate, up, act, norm, eps, limit)
        g, u = self.linear(x, (gate, up), (None, None), norm, eps)
        share = np.negative(g)
        with np.errstate(over="ignore"):
            np.exp(share, out=share)
        share += 1
        g /= share
        g *= u
        return g

    def _note(self, weights: Sequence[DenseMatrix], x: F32) -> None:
        if self._record is not None:
            self._record(tuple(cast(LayerMatrix, w).name for w in weights), x)

    def attention(
        self,
        layer: int,
        q: F32,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        sinks: F32 | None = None,
        chunk: int = 0,
        both: bool = False,
        until: int = 0,
    ) -> F32:
        """Attend over the whole text at once: texts are short here."""
        k, v = self._kv.read(layer)
        heads = q.reshape(len(q), k.shape[1], -1, k.shape[2])
        hidden = np.where(visible(self._positions, len(k), window, chunk), np.float32(0), np.float32(-np.inf))
        out = np.empty((*heads.shape[:3], v.shape[2]), np.float32)
        for kv in range(k.shape[1]):
            for g in range(heads.shape[2]):
                scores = (heads[:, kv, g] * np.float32(scale)) @ k[:, kv].T
                if softcap:
                    scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
                scores += hidden
                top = scores.max(axis=1, keepdims=True)
                sink = None if sinks is None else np.float32(sinks[kv * heads.shape[2] + g])
                top = top if sink is None else np.maximum(top, sink)
                scores -= top
                np.exp(scores, out=scores)
                total = scores.sum(axis=1, keepdims=True) + (0 if sink is None else np.exp(sink - top))
                out[:, kv, g] = scores @ v[:, kv] / total
        return out.reshape(len(q), -1)


class LayerStreams:
    """The residual streams of some texts, on their way through the layers of one model.

    `rough`: see RoughMatrix. `threads`: texts that pass a layer side by side, which changes no bit.
    """

    def __init__(
        self,
        source: Source,
        texts: Sequence[Sequence[int]],
        spool: Path,
        *,
        rough: bool = False,
        threads: int = 1,
    ) -> None:
        self._source, self._threads = source, threads
        self.workers = ThreadPoolExecutor(threads)
        self._texts = [np.asarray(ids, np.int64) for ids in texts]
        longest = max(map(len, self._texts))
        self._weights: NetworkWeights = assemble(
            source, RoughMatrix if rough else LayerMatrix, lambda rope: rope
        ).at(longest)
        self._starts = np.cumsum([0, *map(len, self._texts)])
        network, ends = source.network, self._weights.ends
        begun: list[F32] = []
        for ids in self._texts:
            ops = cast(Ops, RecordingOps(ids, source, None))
            begun.append(cast(F32, network.ends.begin(ops, ends)))
            if network.ends.beside(ops, begun[-1], ends):
                raise UsageError(
                    f"{source.name} reads more than the stream in its layers, which calibration does not run",
                    "quantise it to 4 bits or more, without calibration",
                )
        self._width = begun[0].shape[1]
        self._spool = spool
        # Without a buffer a full disk raises where it is written, not on closing.
        self._file: BinaryIO = spool.open("w+b", buffering=0)
        try:
            for i, x in enumerate(begun):
                self._write(i, x, self._file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file of streams, and end the threads."""
        self._file.close()
        self.workers.shutdown()

    def matrices(self, layer: int) -> list[LayerMatrix]:
        """List a layer's matrices."""
        return [w for w in self._weights.layers[layer].values() if isinstance(w, LayerMatrix)]

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return int(self._starts[-1]) * self._width * 4

    def take(self, passed: Path) -> None:
        """Continue from streams that `run` wrote to a file of their own. Raises StoreError where it cannot be read."""
        with on_disk(passed):
            opened = passed.open("rb", buffering=0)
        self._file.close()
        self._file = opened
        self._spool.unlink(missing_ok=True)

    def run(
        self,
        layer: int,
        records: Sequence[Record | None] | None = None,
        *,
        advance: bool = True,
        into: Path | None = None,
        on_text: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run a layer over every text, each with its own record; with `advance`, the streams pass it.

        `into`: a file that the passed streams are written to, beside and renamed, and read from afterwards; None: in
        place. `on_text`: called with the texts that are done, and how many there are. Records are made here, in the
        texts' order.
        """
        if into is None:
            self._run(layer, records, self._file if advance else None, on_text)
            return
        with on_disk(into):
            write_whole(into, lambda file: self._run(layer, records, file, on_text))
        self.take(into)

    def _run(
        self,
        layer: int,
        records: Sequence[Record | None] | None,
        out: BinaryIO | None,
        on_text: Callable[[int, int], None] | None,
    ) -> None:
        for first in range(0, len(self._texts), self._threads):
            if on_text is not None:
                on_text(first, len(self._texts))
            batch = range(first, min(first + self._threads, len(self._texts)))
            streams = [self._read(i) for i in batch]
            noted = self.workers.map(partial(self._layer, layer, noting=records is not None), batch, streams)
            for i, x, notes in zip(batch, streams, noted, strict=True):
                for names, rows in notes:
                    if records and (record := records[i]):
                        record(names, rows)
                if out is not None:
                    self._write(i, x, out)

    def logits(self) -> Iterator[F32]:
        """Finish each text: float32 [T, V], one text at a time."""
        for i, ids in enumerate(self._texts):
            ops = RecordingOps(ids, self._source, None)
            self._source.network.ends.finish(cast(Ops, ops), self._read(i), self._weights.ends)
            assert ops.result is not None
            yield ops.result

    def hold_ends(self, like: LayerStreams | None = None) -> None:
        """Decode the embedding and the head, for logits, or share those of other streams of the model."""
        for name, w in self._weights.ends.items():
            if isinstance(w, LayerMatrix):
                w.hold(cast(LayerMatrix, like._weights.ends[name]).dense() if like else None)

    def _layer(self, layer: int, text: int, x: F32, *, noting: bool) -> list[tuple[tuple[str, ...], F32]]:
        """Run the layer on a text's stream, in place; return what its matrices multiplied."""
        notes: list[tuple[tuple[str, ...], F32]] = []
        record = (lambda names, rows: notes.append((names, rows))) if noting else None
        ops = cast(Ops, RecordingOps(self._texts[text], self._source, record))
        for part in self._source.network.layers[layer].parts:
            part.forward(ops, layer, x, self._weights.layers[layer])
        return notes

    def _read(self, text: int) -> F32:
        first, end = self._starts[text], self._starts[text + 1]
        self._file.seek(int(first) * self._width * 4)
        got = self._file.read(int(end - first) * self._width * 4)
        return np.frombuffer(bytearray(got), np.float32).reshape(-1, self._width)

    def _write(self, text: int, x: F32, file: BinaryIO) -> None:
        left = memoryview(np.ascontiguousarray(x, np.float32).tobytes())
        with on_disk(self._spool):
            file.seek(int(self._starts[text]) * self._width * 4)
            while left:  # a disk that fills takes a part and raises at the next
                left = left[file.write(left) :]
