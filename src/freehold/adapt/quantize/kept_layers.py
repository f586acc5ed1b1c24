"""Streams and moments of layers that texts have passed, in a run's folder: a run that continues begins after them.

    passed-7.streams     what texts are after layer 7; of the newest two layers
    passed-7.moments     the moments of layer 7, until its tensors are on disk

Each is written beside and renamed, so a kill leaves the layer before. Knows layers by number and arrays; knows no
model, no text and no tensor.
Path: quantising.CalibratedEncoder -> calibration.calibrate -> KeptLayers.start, moments, keep
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.run import on_disk, write_whole

F32 = NDArray[np.float32]
MOST_BYTES = (
    1 << 30
)  # of a layer's moments; a larger layer's are computed once more from the streams before it
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
