"""Sixty pictures that hurt are right or refused by name, beside a server that stays well, and leave nothing behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from freehold.base.platforms import can_confine
from freehold.run.models.tiny import make
from tests.eyes import hurting
from tests.hurting import check_all

DECODER = "freehold.run.pictures.child"  # stays, and forks for each picture


@pytest.mark.heavy
@pytest.mark.skipif(
    not can_confine(), reason="each picture has a process of its own here, which takes minutes"
)
def test_sixty_pictures_that_hurt_are_right_or_refused_and_leave_nothing(tmp_path: Path):
    model = make.write_safetensors(make.config("qwen3_vl"), tmp_path / hurting.MODEL)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    files = hurting.sixty()
    assert len(files) == 60 and len({file.name for file in files}) == 60
    check_all(model, hurting.HurtingPictures, files, temporary, Counter({DECODER: 1}))
