"""A tower in use: packs its weights for the kernels, and computes features of pictures.

Knows panels, plans, memory and batches, and whether a tower fits a text model; knows no tower's arithmetic, no prompt
and no cache of features.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.errors import BadModelFile, CapacityExceeded, NonFiniteLogits, UnsupportedModel
from freehold.formats import open_model_file
from freehold.machine import available_bytes, show_bytes
from freehold.models.binding.bind import filled
from freehold.models.binding.towers import TowerSource, read_tower
from freehold.models.family import NetworkWeights, Ops
from freehold.models.load import LoadedModel, native_rope
from freehold.models.packing.packer import Packer, Rounding, packed_sizes, rounded_floats
from freehold.models.tower import PicturePlan, TokenBudget, Tower, TowerNetwork, TowerRows

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)
Picture = tuple[PicturePlan, Sequence[U8]]

BATCH_ROWS = 1024  # patches of several pictures that are computed together; a larger one is computed alone
KEPT_ROWS = 1024  # of the buffers that stay between calls: some 60 MB for a tower of 1152 columns
_STEP = 256  # in which buffers grow
_Half = Literal["layers", "merger"]


def no_pause() -> None:
    """Let a run continue at once."""


class LoadedTower:
    """A tower's weights packed for the kernels, and the plans that compute it. One call at a time computes."""

    def __init__(
        self,
        source: TowerSource,
        weights: NetworkWeights,
        matrices: Mapping[str, native.Matrix],
        threads: native.Threads,
        digest: str,
    ) -> None:
        self.tower: Tower = source.tower
        self.cfg: Any = source.cfg
        self.name = source.name
        self.path = source.path
        self.notes = source.notes
        self.digest = digest  # distinguishes what it computes from what other towers do
        self.matrices = matrices
        self._network: TowerNetwork = source.network
        self._weights = weights
        self._threads = threads
        self._plans: dict[_Half, _Plan] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(matrix.nbytes for matrix in self.matrices.values())

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
    def span_rows(self) -> int:
        """Rows that a picture becomes at most, of a tower whose text model computes them together."""
        return self.tower.span_rows(self.cfg)

    def working_bytes(self, patches: int) -> int:
        """Return the bytes that computing `patches` at once takes beside the weights, about."""
        return 4 * patches * self.cfg.row_floats

    def plan(self, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
        """Return what a picture of this size becomes; `budget` takes the place of the model's own limits.

        Raises UsageError naming value and limit.
        """
        return self.tower.plan(self.cfg, width, height, budget)

    def features(self, pictures: Sequence[Picture], pause: Callable[[], None] = no_pause) -> list[F32]:
        """Compute features of pictures, each given as its plan and the pixels after its resizes.

        Returns of each float32 [tokens, feature_width]: the same bits whatever pictures are computed beside it.
        `pause` is called after each section of the plans, where the pool is free; what it raises ends the call.
        Raises CapacityExceeded where memory does not suffice, NonFiniteLogits for damaged weights.
        """
        with self._lock:
            try:
                return [
                    each for batch in batches(pictures) for each in self._computed(pictures[batch], pause)
                ]
            finally:
                for half in ("layers", "merger"):
                    self._trim(half)

    def _computed(self, batch: Sequence[Picture], pause: Callable[[], None]) -> list[F32]:
        """Compute the features of pictures together."""
        patches = [plan.patches for plan, _ in batch]
        layers = self._built("layers", sum(patches))
        leaving = self._left(layers, batch, pause)
        del layers
        self._trim("layers")
        parts = zip(batch, np.split(leaving, np.cumsum(patches)[:-1]), strict=True)
        joined = [self._joined(plan, part) for (plan, _), part in parts]
        del leaving, parts
        counts = [len(each) for each in joined]
        merger = self._built("merger", sum(counts))
        features = _run(merger, TowerRows(_one(joined), (sum(counts),)), pause)
        if not np.isfinite(features).all():
            raise NonFiniteLogits(
                f"the tower {self.name} computed NaN or infinity of a picture",
                "its weights may be damaged: freehold pull fetches them anew",
            )
        return [part.copy() for part in np.split(features, np.cumsum(counts)[:-1])]

    def _joined(self, plan: PicturePlan, leaving: F32) -> F32:
        """Return what the merger reads of one picture."""
        joined = self.tower.join(self.cfg, plan, leaving)
        return self.tower.standardised(self.cfg, joined, self._weights.ends)

    def _left(self, layers: native.Plan, batch: Sequence[Picture], pause: Callable[[], None]) -> F32:
        """Run the layers over the patches of pictures, each of which has groups of its own."""
        rows = [self.tower.entering(self.cfg, plan, pixels, self._weights.ends) for plan, pixels in batch]
        places = [each.places for each in rows if each.places is not None]
        groups = tuple(count for each in rows for count in each.groups)
        entering = TowerRows(_one([each.values for each in rows]), groups, _one(places) if places else None)
        del rows
        return _run(layers, entering, pause)

    def _built(self, half: _Half, rows: int) -> native.Plan:
        """Return a plan for `rows` rows: the one that is there, or a larger one in its place."""
        kept = self._plans.pop(half, None)
        if kept is None or kept.rows < rows:
            del kept  # its buffers are let go before others come
            room = -(-rows // _STEP) * _STEP
            if half == "layers":
                self._check_memory(rows, room)
            plan = native.Plan(self._threads, None, room)
            compose = self._network.forward if half == "layers" else self._network.merge
            compose(cast(Ops, plan), self._weights)
            plan.finish()
            kept = _Plan(room, plan)
        self._plans[half] = kept
        return kept.plan

    def _check_memory(self, patches: int, room: int) -> None:
        need, have = self.working_bytes(room), available_bytes()
        if need > have:
            raise CapacityExceeded(
                f"a picture of {patches:,} patches needs {show_bytes(need)} of memory; {show_bytes(have)} are free",
                "send it smaller, or let pictures become fewer tokens",
            )

    def _trim(self, half: _Half) -> None:
        """Let go of buffers that are too large to stay."""
        if half in self._plans and self._plans[half].rows > KEPT_ROWS:
            del self._plans[half]


class _Plan(NamedTuple):
    rows: int  # that it takes
    plan: native.Plan


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


def _run(plan: native.Plan, rows: TowerRows, pause: Callable[[], None]) -> F32:
    """Run a plan section by section, and return what it gives for each row."""
    count, groups = len(rows.values), np.array(rows.groups)
    every = np.arange(count, dtype=np.int32)
    starts = np.repeat(np.cumsum(groups) - groups, groups)
    out = np.empty((count, plan.hidden_width), np.float32)
    step = (
        np.zeros(count, np.int32),  # tokens, which nothing reads
        (every - starts).astype(np.int32),
        np.repeat(np.arange(len(groups), dtype=np.int32), groups),
        np.zeros((len(groups), 0), np.int32),
        np.zeros(0, np.int32),
    )
    options: dict[str, Any] = {
        "hidden_rows": every,
        "hidden": out,
        "features": rows.values,
        "places": rows.places,
    }
    for section in range(plan.sections):
        plan.run(*step, **options, section=section)
        pause()
    return out


# --- a file becomes a tower ---------------------------------------------------------------------------------


def load_tower(
    source: Path,
    text: LoadedModel,
    *,
    rounding: Rounding | None = "q8",
    threads: native.Threads | None = None,
    digest: str = "",
) -> LoadedTower | None:
    """Load the tower of a folder of safetensors, or a GGUF of a tower, for a text model; None: it has none.

    `rounding`: what float matrices are rounded to; None: as they are. `threads` None: the pool of the text model, whose
    steps run between sections of the tower's. `digest`: the file's; without one its name, size and time stand for it.
    Raises UnsupportedModel for a tower that the text model does not read, BadModelFile, CapacityExceeded.
    """
    if not text.family.towers and not text.gguf:
        return None
    with closing(open_model_file(source)) as opened:
        read = read_tower(opened)
        if read is None:
            return None
        check_pair(read, text)
        rounded = rounded_floats(read, rounding) if rounding else {}
        need, have = sum(packed_sizes(read, rounded).values()), available_bytes()
        if need > have:
            raise CapacityExceeded(
                f"the tower {read.name} needs {show_bytes(need)} for its weights; {show_bytes(have)} are free",
                "run the model without eyes, or choose a smaller one",
            )
        pool = threads or text.threads
        packer = Packer(pool, read, rounded, {}, None)
        weights = read.network.turned(filled(read, packer.matrix), native_rope)
        opened.check_whole()
        stamp = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in opened.paths]
        about = (digest or stamp, rounding, native.REVISION, read.tower.name, read.cfg)
    return LoadedTower(read, weights, packer.matrices, pool, hashlib.sha256(repr(about).encode()).hexdigest())


def check_pair(source: TowerSource, text: LoadedModel) -> None:
    """Raise unless the text model reads features of this tower, and of this width."""
    if source.tower.name not in text.family.towers:
        raise UnsupportedModel(
            f"{text.name} is of the architecture {text.architecture}, which reads no pictures of the tower "
            f"{source.name} ({', '.join(source.tower.projectors)})",
            "take the tower that was published with the model",
        )
    width, needed = source.cfg.feature_width, text.family.feature_width(text.cfg)
    if width != needed or source.cfg.out != text.cfg.hidden:
        raise BadModelFile(
            f"the tower {source.name} makes rows of {width:,} columns; {text.name} reads {needed:,}",
            "take the tower that was published with the model",
        )
