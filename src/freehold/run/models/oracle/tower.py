"""The oracle's towers: the same parts in plain NumPy on decoded weights, for judging the native plans.

Knows one picture at a time; slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UnsupportedModel
from freehold.run.formats import ModelFile, open_model_file
from freehold.run.models.binding.bind import filled
from freehold.run.models.binding.towers import TowerSource, read_tower
from freehold.run.models.family import Ops
from freehold.run.models.oracle.session import DenseMatrix, KvStore, NumpyOps, PictureRows
from freehold.run.models.tower import PicturePlan

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class TowerOracle:
    """A tower in NumPy. Raises UnsupportedModel for a file without one."""

    def __init__(self, source: str | Path | ModelFile, hears: bool = False) -> None:
        opened = open_model_file(source) if isinstance(source, str | Path) else source
        read = read_tower(opened, hears)
        if read is None:
            raise UnsupportedModel(f"{opened.path} has no tower")
        self.source: TowerSource = read
        self._weights = read.network.turned(filled(read, lambda t: DenseMatrix(t, True)), lambda rope: rope)
        if opened is not source:
            opened.close()

    def features(self, plan: PicturePlan, pixels: Sequence[U8]) -> F32:
        """Compute the features of a picture: float32 [tokens, feature width]."""
        tower, cfg, network = self.source.tower, self.source.cfg, self.source.network
        rows = tower.entering(cfg, plan, pixels, self._weights.ends)
        ops = _ops(PictureRows(rows.values, None, rows.places))

        def within(windowed: bool) -> None:
            lengths = rows.windows if windowed else rows.groups
            ops.attend_within(np.repeat(np.arange(len(lengths)), lengths))

        network.forward(cast(Ops, ops), self._weights, within)
        joined = tower.join(cfg, plan, _result(ops))
        ops = _ops(PictureRows(tower.standardised(cfg, joined, self._weights.ends)))
        network.merge(cast(Ops, ops), self._weights)
        return _result(ops)


def _ops(pictures: PictureRows) -> NumpyOps:
    assert pictures.features is not None
    return NumpyOps(np.zeros(len(pictures.features), np.int64), KvStore(0, False), (), pictures)


def _result(ops: NumpyOps) -> F32:
    assert ops.result is not None, "a forward pass ends in hidden"
    return ops.result
