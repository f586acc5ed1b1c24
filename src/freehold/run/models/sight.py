"""What a tower takes and makes of pictures, from headers alone: for `show`, `fit` and others that size a model.

Knows towers' files and plans; packs nothing, computes nothing, and knows no text model and no machine.
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

from freehold.base.errors import UsageError
from freehold.base.layers import PICTURES_AT_ONCE, PictureNeed, TowerNeed
from freehold.base.serving import FEATURE_BYTES
from freehold.run.formats import open_model_file
from freehold.run.models.binding.towers import TowerSource, read_tower
from freehold.run.models.packing.packer import packed_sizes, rounded_floats
from freehold.run.models.seeing import BATCH_ROWS, pictures_bytes

SCREEN = (1920, 1080)  # pixels of the picture that sizes and times are stated for
# Pictures whose plans show how many tokens one becomes at least and at most.
_SMALL, _LARGE = (32, 32), (8192, 8192)
_FLOAT = 4


def tower_need(path: Path) -> TowerNeed | None:
    """Return what the tower of a folder of safetensors, or of an mmproj, takes; None: the file has none.

    Matrices are counted as they are packed, floats rounded to int8. Raises what opening a file and read_tower raise.
    """
    with closing(open_model_file(path)) as opened:
        source = read_tower(opened)
        return None if source is None else _need(source)


def _need(source: TowerSource) -> TowerNeed:
    cfg = source.cfg
    packed = packed_sizes(source, rounded_floats(source, "q8"))
    names = {bound.tensor.name for layer in source.layers for bound in layer.values()}
    matrices = {tensor.name: tensor for tensor in source.matrices()}
    in_layers = sum(math.prod(matrices[name].shape) for name in names & matrices.keys())
    screen = _picture(source, *SCREEN)
    small, large = _picture(source, *_SMALL), _picture(source, *_LARGE)
    return TowerNeed(
        name=source.tower.name,
        weights=sum(packed.values()),
        kept=FEATURE_BYTES,
        layers=cfg.layers,
        width=cfg.hidden,
        patch_weights=in_layers,
        token_weights=sum(math.prod(m.shape) for name, m in matrices.items() if name not in names),
        working=pictures_bytes(cfg, screen.patches if screen else BATCH_ROWS, 0, PICTURES_AT_ONCE),
        feature=_FLOAT * cfg.feature_width,
        least=small.tokens if small else 0,
        most=large.tokens if large else 0,
        screen=screen,
    )


def _picture(source: TowerSource, width: int, height: int) -> PictureNeed | None:
    """Return what a picture of this size becomes; None where the tower refuses the size."""
    try:
        plan = source.tower.plan(source.cfg, width, height, None)
    except UsageError:
        return None
    return PictureNeed(width, height, plan.patches, plan.tokens, len(plan.resizes))
