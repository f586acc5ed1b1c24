"""Processor seconds by part: one inside another counts alone, and earlier runs are added."""

from __future__ import annotations

import pytest

from freehold.adapt.quantize import quantising
from freehold.adapt.quantize.quantising import SpentSeconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(quantising, "cpu_seconds", lambda: now[0])
    return now


def test_calibration_inside_encoding_counts_alone(clock: list[float]):
    found = SpentSeconds()
    with found.on("encoding"):
        clock[0] += 2
        with found.on("calibration"):
            clock[0] += 5
        clock[0] += 1
        assert found.so_far() == {"calibration": 5, "encoding": 3}
        clock[0] += 4
    clock[0] += 50  # between parts
    with found.on("report"):
        clock[0] += 6
    assert found.so_far() == {"calibration": 5, "encoding": 7, "report": 6}


def test_earlier_runs_are_added(clock: list[float]):
    found = SpentSeconds()
    found.resume({"calibration": 30, "an older part": 9})
    with found.on("calibration"):
        clock[0] += 1
    assert found.so_far() == {"calibration": 31}
