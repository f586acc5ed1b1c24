"""What towers take and make of pictures and sounds, from headers alone: for `show`, `fit` and others that size a model.

Knows towers' files and plans; packs nothing, computes nothing, and knows no text model and no machine.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from freehold.base.errors import UsageError
from freehold.base.layers import PICTURES_AT_ONCE, PictureNeed, SoundNeed, TowerNeed
from freehold.base.serving import FEATURE_BYTES
from freehold.run.formats import open_model_file
from freehold.run.models.binding.towers import TowerSource, read_tower
from freehold.run.models.packing.packer import packed_sizes, rounded_floats
from freehold.run.models.seeing import BATCH_ROWS, pictures_bytes

RATE = 16_000  # samples a second, as all towers of sounds take them
SCREEN = (1920, 1080)  # pixels of the picture that sizes and times are stated for
# Pictures whose plans show how many tokens one becomes at least and at most.
_SMALL, _LARGE = (32, 32), (8192, 8192)
_FLOAT = 4


SPEECH = "whisper"  # the encoder of a model that only writes down recordings


def tower_need(path: Path) -> TowerNeed | None:
    """Return what the towers of a folder of safetensors, or of an mmproj, take; None: the file has none.

    Matrices are counted as they are packed, floats rounded to int8. Raises what opening a file and read_tower raise.
    """
    with closing(open_model_file(path)) as opened:
        sight, hearing = read_tower(opened), read_tower(opened, hears=True)
        if (
            hearing is None and sight is not None and sight.tower.name == SPEECH
        ):  # its windows are no pictures
            return TowerNeed(
                sum(packed_sizes(sight, rounded_floats(sight, "q8")).values()), FEATURE_BYTES, SPEECH
            )
        if hearing is None:
            return None if sight is None else _need(sight)
        sounds = _sound_need(hearing)
        if sight is None:
            return TowerNeed(sounds.weights, FEATURE_BYTES, sounds.name, sounds=sounds)
        need = _need(sight)
        return replace(
            need, weights=need.weights + sounds.weights, kept=need.kept + FEATURE_BYTES, sounds=sounds
        )


def sound_need(path: Path) -> SoundNeed | None:
    """Return what the tower of sounds of a file takes; None: it has none. Raises as tower_need."""
    with closing(open_model_file(path)) as opened:
        source = read_tower(opened, hears=True)
        return None if source is None else _sound_need(source)


def _sound_need(source: TowerSource) -> SoundNeed:
    weights = sum(packed_sizes(source, rounded_floats(source, "q8")).values())
    most = source.tower.most_seconds
    tokens = source.tower.plan(source.cfg, round(most * RATE), 1, None).tokens
    return SoundNeed(source.tower.name, weights, most, tokens)


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
