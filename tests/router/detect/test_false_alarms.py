"""Ordinary lines are left alone: at most one false alarm in 1,000 of 5,000 lines of code, prose and logs."""

from __future__ import annotations

import random

from freehold.route.router.detect import Sieve
from tests.router.detect.ordinary import log_lines, written_lines

LINES, MOST = 5000, 5


def test_ordinary_lines_raise_at_most_one_false_alarm_in_a_thousand():
    written = random.Random(5).sample(list(written_lines()), LINES - 1500)
    lines = [*written, *log_lines(1500)]
    sieve = Sieve()
    alarms = [(line, found) for line in lines if (found := sieve.find([line]))]
    assert len(lines) == LINES and len(alarms) <= MOST, alarms
