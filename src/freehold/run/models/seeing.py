"""A tower in use: packs its weights for the kernels, and computes features of pictures.

Knows panels, plans, memory and batches, and whether a tower fits a text model; knows no tower's arithmetic, no prompt
and no cache of features.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base.errors import BadModelFile, CapacityExceeded, NonFiniteLogits, UnsupportedModel
from freehold.base.machine import available_bytes, show_bytes
from freehold.run.formats import ModelFile, open_model_file
from freehold.run.models.binding.bind import filled
from freehold.run.models.binding.towers import TowerSource, read_tower
from freehold.run.models.family import NetworkWeights, Ops
from freehold.run.models.load import LoadedModel, native_rope
from freehold.run.models.packing.packer import Packer, Rounding, packed_sizes, rounded_floats
from freehold.run.models.tower import (
    PicturePlan,
    TokenBudget,
    Tower,
    TowerNetwork,
    TowerRows,
    TowerSizes,
    check_tokens,
)

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)
Picture = tuple[PicturePlan, Sequence[U8]]
TowerRun = Generator[None, None, list[F32]]
Stamp = tuple[tuple[str, int, int], ...]  # of files: name, bytes, time

BATCH_ROWS = 1024  # patches of several pictures that are computed together; a larger one is computed alone
# Of runs that take turns (local/encoding.py): patches of all but the largest, which is one more picture of 2,040 tokens
# of Qwen's and two batches; and runs of a batch.
LIVE_ROWS, SMALL_RUNS = 8192 + 2 * BATCH_ROWS, 2
SCRATCH = (
    44 << 20
)  # bytes of what kernels pack for themselves and of the first buffers, about, on two threads
PIXEL_BYTES = 64 << 20  # of pictures that are opened and wait for the tower; one may have more
PIXELS_OF_A_PATCH = 3 * 16 * 16  # bytes, about
KEPT_ROWS = 1024  # of the buffers that stay between calls: some 60 MB for a tower of 1152 columns
HOLD = 0.05  # seconds that a section may keep the threads from steps of running answers
_FIRST = 512  # rows of a section whose pace is not known
_STEP = 256  # in which buffers grow
TILE_ROWS = 32  # that attention computes together
_Half = Literal["layers", "merger"]


def no_pause() -> None:
    """Let a run continue at once."""


def live_rows(patches: int, count: int) -> int:
    """Return how many patches are computed at once, at most, of `count` pictures that have as many each."""
    alone = patches * min(max(BATCH_ROWS // patches, 1), count)  # of a run
    runs = -(-patches * count // alone)
    most = SMALL_RUNS if alone <= BATCH_ROWS else 1 + LIVE_ROWS // alone
    return alone * min(runs, most)


def pictures_bytes(cfg: TowerSizes, patches: int, tokens: int, count: int) -> int:
    """Return the bytes that `count` pictures of one size take beside a tower's weights when all come at once, about.

    Whatever their clients: buffers of the runs that take turns, and pixels of those that are opened, in whose place
    come features, which stay with their requests to the end. What is kept for later prompts are these features, or
    others up to serving.FEATURE_BYTES. benches/eyes/memory.py compares it with what a process takes.
    """
    rows = -(-live_rows(patches, count) // _STEP) * _STEP
    pixels, features = patches * PIXELS_OF_A_PATCH, 4 * tokens * cfg.feature_width
    opened = min(count, max(PIXEL_BYTES // pixels, 1))
    waiting = max((count - opened) * features + opened * pixels, count * features + min(count, 2) * pixels)
    merged = 0
    if patches <= BATCH_ROWS < rows:  # a run's merger beside another's layers, and the buffers of both stay
        joined = BATCH_ROWS * tokens // patches
        merged = 4 * (BATCH_ROWS * 3 * cfg.hidden + joined * 5 * cfg.feature_width)
    return 4 * rows * cfg.row_floats + merged + waiting + SCRATCH


class LoadedTower:
    """A tower's weights packed for the kernels, with the first picture or before, and the plans that compute it.

    One thread at a time computes; its runs may take turns.
    """

    def __init__(
        self,
        source: TowerSource,
        pack: Callable[[], PackedTower],
        weight_bytes: int,
        threads: native.Threads,
        digest: str,
        rounds: bool,
    ) -> None:
        """`pack` reads and packs the weights, some `weight_bytes`."""
        self.tower: Tower = source.tower
        self.cfg: Any = source.cfg
        self.name = source.name
        self.path = source.path
        self.notes = source.notes
        self.digest = digest  # distinguishes what it computes from what other towers do
        self._network: TowerNetwork = source.network
        self._pack, self._packed, self._weight_bytes = pack, None, weight_bytes
        self._threads = threads
        self._rounds = rounds  # attention too, as int8 panels round what they read
        self._plans: dict[_Half, _Plan] = {}  # that no run uses
        self._lock = threading.Lock()  # of computing
        self._loading = threading.Lock()

    def load(self) -> PackedTower:
        """Pack the weights unless they are. Raises BadModelFile, CapacityExceeded."""
        with self._loading:
            if self._packed is None:
                self._packed = self._pack()
            return self._packed

    @property
    def matrices(self) -> Mapping[str, native.Matrix]:
        """Packed weights."""
        return self.load().matrices

    @property
    def _weights(self) -> NetworkWeights:
        return self.load().weights

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights, whether they are loaded or not."""
        if self._packed is None:
            return self._weight_bytes
        return sum(matrix.nbytes for matrix in self._packed.matrices.values())

    @property
    def buffer_bytes(self) -> int:
        """Bytes of buffers that are kept now, about."""
        layers = self._plans.get("layers")
        return 0 if layers is None else self.working_bytes(layers.rows)

    @property
    def feature_width(self) -> int:
        """Columns of a row of features."""
        return self.cfg.feature_width

    @property
    def mark(self) -> str:
        """What stands for a picture in the text of a chat template."""
        return self.cfg.mark or self.tower.mark

    @property
    def written(self) -> str:
        """What a template writes for a picture, where that is not the mark."""
        return "" if self.cfg.mark else self.tower.written

    @property
    def spelled(self) -> str:
        """What takes the place of that, the mark in it."""
        return "" if self.cfg.mark else self.tower.spelled

    @property
    def row(self) -> str:
        """What stands for each row of a picture in a prompt that is shown."""
        return self.mark if self.cfg.mark else self.tower.row or self.mark

    def span_rows(self, budget: TokenBudget | None = None) -> int:
        """Return the rows that a picture becomes at most, of a tower whose text model computes them together."""
        return self.tower.span_rows(self.cfg, budget)

    def working_bytes(self, patches: int) -> int:
        """Return the bytes that computing `patches` at once takes beside the weights, about."""
        return 4 * patches * self.cfg.row_floats

    def plan(self, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
        """Return what a picture of this size becomes; `budget` takes the place of the model's own limits.

        Raises UsageError naming value and limit.
        """
        planned = self.tower.plan(self.cfg, width, height, budget)
        check_tokens(planned.tokens)
        return planned

    def features(self, pictures: Sequence[Picture], pause: Callable[[], None] = no_pause) -> list[F32]:
        """Compute features of pictures, each given as its plan and the pixels after its resizes.

        Returns of each float32 [tokens, feature_width]: the same bits whatever pictures are computed beside it.
        `pause` is called after each section of the plans, where the pool is free; what it raises ends the call.
        Raises CapacityExceeded where memory does not suffice, NonFiniteLogits for damaged weights.
        """
        computed: list[F32] = []
        with self._lock:
            for batch in batches(pictures):
                run = self.run(pictures[batch])
                try:
                    while True:
                        next(run)
                        pause()
                except StopIteration as ended:
                    computed += ended.value
                finally:
                    run.close()
        return computed

    def run(self, batch: Sequence[Picture]) -> TowerRun:
        """Compute the features of pictures together, as `features` does: a generator that pauses after each section.

        It returns them. A run has buffers of its own (working_bytes), so several may take turns; closing one lets them
        go. Raises as `features`.
        """
        patches = [plan.patches for plan, _ in batch]
        layers = self._built("layers", sum(patches))
        try:
            leaving = yield from self._left(layers, batch)
        finally:
            self._spare("layers", layers)
            del layers
        parts = zip(batch, np.split(leaving, np.cumsum(patches)[:-1]), strict=True)
        joined = [self._joined(plan, part) for (plan, _), part in parts]
        del leaving, parts
        counts = [len(each) for each in joined]
        merger = self._built("merger", sum(counts))
        try:
            features = yield from _run(merger, TowerRows(_one(joined), (sum(counts),)))
        finally:
            self._spare("merger", merger)
        if not np.isfinite(features).all():
            raise NonFiniteLogits(
                f"the encoder {self.name} computed NaN or infinity for {self._what}",
                "its weights may be damaged: freehold pull downloads them again",
            )
        return [part.copy() for part in np.split(features, np.cumsum(counts)[:-1])]

    def _joined(self, plan: PicturePlan, leaving: F32) -> F32:
        """Return what the merger reads of one picture."""
        joined = self.tower.join(self.cfg, plan, leaving)
        return self.tower.standardised(self.cfg, joined, self._weights.ends)

    def _left(self, layers: _Plan, batch: Sequence[Picture]) -> Generator[None, None, F32]:
        """Run the layers over the patches of pictures, each of which has groups of its own."""
        rows = [self.tower.entering(self.cfg, plan, pixels, self._weights.ends) for plan, pixels in batch]
        places = [each.places for each in rows if each.places is not None]
        entering = TowerRows(
            _one([each.values for each in rows]),
            tuple(count for each in rows for count in each.groups),
            _one(places) if places else None,
            tuple(count for each in rows for count in each.windows),
        )
        del rows
        return (yield from _run(layers, entering))

    def _built(self, half: _Half, rows: int) -> _Plan:
        """Return a plan for `rows` rows: a spare one, or a larger one in its place."""
        kept = self._plans.pop(half, None)
        if kept is None or kept.rows < rows:
            del kept  # its buffers are let go before others come
            room = -(-rows // _STEP) * _STEP
            if half == "layers":
                self._check_memory(rows, room)
            kept = self._composed(half, room)
        return kept

    def _composed(self, half: _Half, room: int) -> _Plan:
        """Record a plan for `room` rows, and which of its sections are those of layers with windows."""
        plan = native.Plan(self._threads, None, room, rounds=self._rounds)
        begins: list[tuple[int, bool]] = []  # of each layer the first section, and whether it has windows
        if half == "layers":
            self._network.forward(
                cast(Ops, plan), self._weights, lambda windowed: begins.append((plan.sections, windowed))
            )
        else:
            self._network.merge(cast(Ops, plan), self._weights)
        plan.finish()
        kinds = [_Section(-1 - section, False) for section in range(plan.sections)]
        for begin, windowed in begins:
            kinds[begin:] = [_Section(place, windowed) for place in range(plan.sections - begin)]
        return _Plan(room, plan, kinds)

    def _check_memory(self, patches: int, room: int) -> None:
        need, have = self.working_bytes(room), available_bytes()
        if need > have:
            less = (
                "send a shorter one"
                if self.tower.hears
                else "send a smaller one, or allow fewer tokens per picture"
            )
            raise CapacityExceeded(
                f"{self._what} of {patches:,} {'rows' if self.tower.hears else 'patches'} needs {show_bytes(need)} of "
                f"memory; {show_bytes(have)} are free",
                less,
            )

    @property
    def _what(self) -> str:
        return "a recording" if self.tower.hears else "a picture"

    def _spare(self, half: _Half, built: _Plan) -> None:
        """Keep a plan for the next run, unless its buffers are too large to stay."""
        if built.rows <= KEPT_ROWS and (half not in self._plans or self._plans[half].rows < built.rows):
            self._plans[half] = built


class PackedTower(NamedTuple):
    """A tower's weights."""

    weights: NetworkWeights
    matrices: Mapping[str, native.Matrix]


class _Section(NamedTuple):
    """What sections of all layers have in common that take equally long."""

    place: int  # in its layer; below 0: in none
    windowed: bool  # whether rows attend within windows


class _Plan(NamedTuple):
    rows: int  # that it takes
    plan: native.Plan
    sections: list[_Section]


def _one(arrays: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    """Return arrays one below another, a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def batches(pictures: Sequence[Picture]) -> Iterator[slice]:
    """Yield runs of pictures that together have at most BATCH_ROWS patches, or are one."""
    begin, rows = 0, 0
    for i, (plan, _) in enumerate(pictures):
        if i > begin and rows + plan.patches > BATCH_ROWS:
            yield slice(begin, i)
            begin, rows = i, 0
        rows += plan.patches
    if begin < len(pictures):
        yield slice(begin, len(pictures))


class _Pace:
    """How many rows of a section take HOLD, by how long those of its kind took before."""

    def __init__(self) -> None:
        self._seconds: dict[_Section, float] = {}  # of a row

    def cut(self, kind: _Section, left: int) -> int:
        """Return how many of the rows that are left to compute at once."""
        if kind not in self._seconds:
            return left if left <= 2 * _FIRST else _FIRST
        cuts = max(1, round(left * self._seconds[kind] / HOLD + 0.3))
        return min(left, -(-left // cuts // TILE_ROWS) * TILE_ROWS)

    def took(self, kind: _Section, rows: int, seconds: float) -> None:
        """Record a cut."""
        self._seconds[kind] = seconds / rows


def _run(built: _Plan, rows: TowerRows) -> Generator[None, None, F32]:
    """Run a plan section by section, a long one by cuts, with a pause after each; return what it gives for each row."""
    count = len(rows.values)
    out = np.empty((count, built.plan.hidden_width), np.float32)
    whole = _step(count, rows.groups)
    parts = _step(count, rows.windows) if rows.windows else whole
    options: dict[str, Any] = {
        "hidden_rows": np.arange(count, dtype=np.int32),
        "hidden": out,
        "features": rows.values,
        "places": rows.places,
    }
    pace = _Pace()
    for section, kind in enumerate(built.sections):
        step, begin = parts if kind.windowed else whole, 0
        while begin < count:
            end = begin + pace.cut(kind, count - begin)
            start = time.perf_counter()
            built.plan.run(*step, **options, section=section, begin=begin, end=end)
            pace.took(kind, end - begin, time.perf_counter() - start)
            begin = end
            yield
    return out


def _step(count: int, groups: Sequence[int]) -> tuple[I32, I32, I32, I32, I32]:
    """Return what a plan takes of `count` rows: tokens, which nothing reads, positions, groups, no blocks or logits."""
    lengths = np.array(groups)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return (
        np.zeros(count, np.int32),
        (np.arange(count) - starts).astype(np.int32),
        np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        np.zeros((len(lengths), 0), np.int32),
        np.zeros(0, np.int32),
    )


# --- a file becomes a tower ---------------------------------------------------------------------------------


def load_tower(
    source: Path,
    text: LoadedModel,
    *,
    rounding: Rounding | None = "q8",
    threads: native.Threads | None = None,
    digest: str = "",
    lazy: bool = False,
    hears: bool = False,
) -> LoadedTower | None:
    """Load the tower of a folder of safetensors, or a GGUF of a tower, for a text model; None: it has none.

    `hears`: that of sounds, where the model has one of pictures too.

    `rounding`: what float matrices are rounded to, and attention with them (to bfloat16, where that is faster);
    None: as they are. `threads` None: the pool of the text model, whose steps run between sections of the tower's.
    `digest`: the file's; without one its name, size and time stand for it. `lazy`: weights are read with the first
    picture; all else is checked now.
    Raises UnsupportedModel for a tower that the text model does not read, BadModelFile, CapacityExceeded.
    """
    if not text.family.towers and not text.gguf:
        return None
    with closing(open_model_file(source)) as opened:
        read = read_tower(opened, hears)
        if read is None:
            return None
        check_pair(read, text)
        rounded = rounded_floats(read, rounding) if rounding else {}
        stamp = _stamp(opened)
        about = (digest or stamp, rounding, native.REVISION, read.tower.name, read.cfg)
        whole, need = (
            hashlib.sha256(repr(about).encode()).hexdigest(),
            sum(packed_sizes(read, rounded).values()),
        )
    pool = threads or text.threads
    pack = partial(_packed, source, stamp, rounding, pool, need, hears)
    tower = LoadedTower(read, pack, need, pool, whole, rounding is not None)
    if not lazy:
        tower.load()
    return tower


def _packed(
    source: Path, stamp: Stamp, rounding: Rounding | None, pool: native.Threads, need: int, hears: bool
) -> PackedTower:
    """Read and pack a tower's weights, `need` bytes. Raises BadModelFile, also where the files are not as checked."""
    if need > (have := available_bytes()):
        raise CapacityExceeded(
            f"the encoder of {source.name} needs {show_bytes(need)} for its weights; {show_bytes(have)} are free",
            "run the model without it (--eyes off), or choose a smaller model",
        )
    with closing(open_model_file(source)) as opened:
        if _stamp(opened) != stamp or (read := read_tower(opened, hears)) is None:
            raise BadModelFile(
                f"{source.name} is not the file it was when the model was loaded", "load the model again"
            )
        packer = Packer(pool, read, rounded_floats(read, rounding) if rounding else {}, {}, None)
        weights = read.network.turned(filled(read, packer.matrix), native_rope)
        opened.check_whole()
    return PackedTower(weights, packer.matrices)


def _stamp(opened: ModelFile) -> Stamp:
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in opened.paths)


def check_pair(source: TowerSource, text: LoadedModel) -> None:
    """Raise unless the text model reads features of this tower, and of this width."""
    if source.tower.name not in text.family.towers:
        raise UnsupportedModel(
            f"{text.name} has the architecture {text.architecture}, which does not support the "
            f"{'audio' if source.tower.hears else 'vision'} encoder {source.name} "
            f"({', '.join(source.tower.projectors)})",
            "use the encoder that was published with the model",
        )
    width, needed = source.cfg.feature_width, text.family.feature_width(text.cfg)
    if width != needed or source.cfg.out != text.cfg.hidden:
        raise BadModelFile(
            f"the encoder {source.name} has features of width {width:,}; {text.name} expects {needed:,}",
            "use the encoder that was published with the model",
        )
