"""Forty recordings that hurt are right or refused, beside a server that stays well, and leave nothing behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from freehold.base.platforms import can_confine
from tests.hurting import check_all
from tests.sounds import hurting
from tests.vectors.whisper import write_listener

DECODER = "freehold.run.sounds.child"  # ends with its recording


@pytest.mark.heavy
@pytest.mark.skipif(not can_confine(), reason="the processes are confined on Linux alone")
def test_forty_recordings_that_hurt_are_right_or_refused_and_leave_nothing(tmp_path: Path):
    model = write_listener(tmp_path / "ears", texts=16)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    files = hurting.forty()
    assert len(files) == 40 and len({file.name for file in files}) == 40
    check_all(model, hurting.HurtingRecordings, files, temporary, Counter({DECODER: 0}))
