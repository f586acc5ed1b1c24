from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.types import Usage
from freehold.choose.advisor import calibration, machine
from freehold.choose.advisor.learning import LEAST_ANSWER, learn, speeds
from freehold.choose.advisor.machine import Rates

from .test_anatomy import two_layers

RATES = Rates(40.0, 1000.0)
PLAIN = Usage(prompt_tokens=200, completion_tokens=101, prefill_s=0.5, decode_s=2.0)


def test_a_plain_answer_tells_two_speeds():
    assert list(speeds(PLAIN)) == [("decode", 250, 50.0), ("prefill", 200, 400.0)]


def test_what_was_cached_guessed_resumed_or_short_tells_nothing():
    assert list(speeds(replace(PLAIN, resumed_tokens=1))) == []
    assert [s[0] for s in speeds(replace(PLAIN, cached_tokens=8))] == ["decode"]
    assert [s[0] for s in speeds(replace(PLAIN, drafted_tokens=60, accepted_tokens=50))] == ["prefill"]
    assert list(speeds(replace(PLAIN, prompt_tokens=10, completion_tokens=LEAST_ANSWER - 1))) == []
    (few,) = (s for s in speeds(replace(PLAIN, drafted_tokens=10, accepted_tokens=5)) if s[0] == "decode")
    assert few[2] == 50.0 * 95 / 100  # steps a second


def test_runs_are_kept_beside_what_was_predicted(tmp_path: Path):
    path, key = two_layers(tmp_path / "tiny.gguf"), machine.name_here()
    learn(tmp_path, path, [PLAIN])
    assert calibration.read(tmp_path, key, RATES).runs == ()  # this machine was never measured
    machine.keep(tmp_path, key, RATES)
    learn(tmp_path, path, [PLAIN] * calibration.ENOUGH)
    runs = calibration.read(tmp_path, key, RATES).runs
    assert [(r.kind, r.depth, r.measured, r.quant) for r in runs[:2]] == [
        ("decode", 250, 50.0, "Q8_0"),
        ("prefill", 200, 400.0, "Q8_0"),
    ]
    assert runs[0].told == pytest.approx(runs[0].raw(RATES), rel=1e-3)
    learn(tmp_path, path, [PLAIN])
    assert calibration.read(tmp_path, key, RATES).runs[-2].told < runs[0].told  # by now it knows better


def test_a_failure_to_keep_is_none_of_the_answer(tmp_path: Path):
    machine.keep(tmp_path, machine.name_here(), Rates(40.0, 1000.0))
    learn(tmp_path, tmp_path / "gone.gguf", [PLAIN])
    (tmp_path / calibration.FILE).mkdir()
    learn(tmp_path, two_layers(tmp_path / "tiny.gguf"), [PLAIN])


def test_runs_beside_others_are_kept_and_do_not_count(tmp_path: Path):
    path, key = two_layers(tmp_path / "tiny.gguf"), machine.name_here()
    machine.keep(tmp_path, key, RATES)
    learn(tmp_path, path, [PLAIN], load=1.5)
    found = calibration.read(tmp_path, key, RATES)
    assert (found.runs, len(found.crowded), found.damaged) == ((), 2, 0)
    learn(tmp_path, path, [PLAIN], load=0.1)
    assert len(calibration.read(tmp_path, key, RATES).runs) == 2
