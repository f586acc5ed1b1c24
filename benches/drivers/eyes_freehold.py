"""Freehold's driver for eyes/encode.py: a tower that encodes pictures of random pixels.

The text model that it would be loaded for is a stand-in, which says that the two fit.

Path: eyes/encode.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import freehold
from benches.lib.driver import Clock, serve
from freehold import _native
from freehold.run.formats import open_model_file
from freehold.run.models import seeing
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.load import LoadedModel
from freehold.run.models.seeing import LoadedTower, load_tower
from freehold.run.models.tower import TokenBudget


class Encoder:
    """Towers by the path of their file."""

    def __init__(self) -> None:
        self._tower: LoadedTower | None = None

    def load(self, text: str, mmproj: str, threads: int) -> dict[str, Any]:
        """Load the tower; float matrices become int8 panels, as when a model is served."""
        with open_model_file(mmproj) as opened:
            source = read_tower(opened)
        assert source is not None
        family = SimpleNamespace(
            towers=(source.tower.name,), feature_width=lambda cfg: source.cfg.feature_width
        )
        fits = SimpleNamespace(
            name="any", architecture="any", family=family, cfg=SimpleNamespace(hidden=source.cfg.out), gguf=True,
            threads=_native.Threads(threads),
        )  # fmt: skip
        self._tower = load_tower(Path(mmproj), cast(LoadedModel, fits))
        assert self._tower is not None
        return {"version": f"freehold {freehold.__version__} ({_native.isa()})", "bytes": self._tower.nbytes}

    def encode(self, width: int, height: int, most: int = 0) -> dict[str, Any]:
        """Time the features of one picture of up to `most` tokens: patches from pixels, layers, merger."""
        assert self._tower is not None
        plan = self._tower.plan(width, height, TokenBudget(1, most) if most else None)
        rng = np.random.default_rng(width)
        sizes = [resizes[-1] for resizes in plan.resizes]
        pixels = [rng.integers(0, 256, (each.height, each.width, 3), np.uint8) for each in sizes]
        clock = Clock()
        (features,) = self._tower.features([(plan, pixels)])
        took = clock.took()
        assert np.isfinite(features).all()
        return {
            **took._asdict(),
            "tokens": plan.tokens,
            "patches": plan.patches,
            "groups": _groups(self._tower, plan),
        }

    def spent(self, width: int, height: int, most: int = 0) -> dict[str, Any]:
        """Return each op of the layers' plan and of the merger's with its seconds of processor, of the first thread."""
        assert self._tower is not None
        seeing.KEPT_ROWS = 1 << 30  # the plans stay after a call
        self.encode(width, height, most)
        plans = [self._tower._plans[half].plan for half in ("layers", "merger")]
        for plan in plans:
            plan.watch()
        self.encode(width, height, most)
        return {"ops": [each for plan in plans for each in plan.spent()]}

    def ceilings(self, threads: list[int]) -> dict[str, list[float]]:
        """Measure the machine's int8 units, for each of `threads`; the best of three, as noise only takes."""
        return {
            "measure_int8_gops": [max(_native.measure_int8_gops(n) for _ in range(3)) for n in threads],
        }


def _groups(tower: LoadedTower, plan: Any) -> list[int]:
    """Return how many patches attend to each other, group by group."""
    pixels = [np.zeros((each[-1].height, each[-1].width, 3), np.uint8) for each in plan.resizes]
    return list(tower.tower.rows(tower.cfg, plan, pixels).groups)


if __name__ == "__main__":
    serve(Encoder())
