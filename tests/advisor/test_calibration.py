from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.choose.advisor import calibration
from freehold.choose.advisor.calibration import COSTS, FILE, UNKNOWN, History, Run, read, record
from freehold.choose.advisor.machine import Rates

RATES = Rates(read_gb_s=50.0, int8_gops=1000.0)
# 1e9 bytes and nothing else: 50 tokens a second at these rates
RUN = Run(
    "decode", "here", "a", "Q8_0", 100, read=1e9, cores=1.0, rest=1.0, read_gb_s=0.0, int8_gops=0.0, told=45.0,
    measured=40.0, at="2026-11-25T12:00:00+00:00", costs=COSTS,
)  # fmt: skip


def runs(*measured: float, model: str = "a", kind: str = "decode") -> tuple[Run, ...]:
    return tuple(replace(RUN, measured=m, model=model, kind=kind) for m in measured)


def test_without_runs_nothing_is_corrected():
    found = History(RATES).correction("decode", "a")
    assert (found.factor, found.deviation, found.runs) == (1.0, UNKNOWN, 0)
    assert math.isnan(found.error)
    assert History(RATES).correction("decode", "a", "experts").deviation > UNKNOWN


def test_models_of_its_make_correct_a_model_before_all_others_and_others_leave_more_doubt():
    dense, experts = runs(*[50] * 6), tuple(replace(r, make="experts") for r in runs(*[25] * 6, model="b"))
    history = History(RATES, (*dense, *experts))
    found = history.correction("decode", "c", "experts")
    assert (found.factor, found.make, found.own) == (pytest.approx(0.5), "experts", False)
    assert history.correction("decode", "c").factor == pytest.approx(1.0)
    strange = history.correction("decode", "c", "latents")
    assert strange.make == "" and strange.deviation > found.deviation


def test_runs_whose_costs_other_formulas_counted_do_not_count(tmp_path: Path):
    record(tmp_path, [replace(RUN, costs=COSTS - 1), RUN])
    assert read(tmp_path, "here", RATES).runs == (RUN,)


def test_a_models_own_runs_go_before_others_and_medians_do_not_mind_an_outlier():
    history = History(RATES, (*runs(40, 41, 39, 40, 4), *runs(100, 100, 100, 100, 100, 100, model="b")))
    own = history.correction("decode", "a")
    assert (own.factor, own.runs, own.own) == (pytest.approx(0.8), 5, True)
    other = history.correction("decode", "c")
    assert (other.factor, other.own) == (pytest.approx(math.sqrt(0.8 * 2)), False)  # a model counts once
    assert history.correction("prefill", "a").runs == 0


def test_a_tiny_model_corrects_itself_alone():
    history = History(RATES, tuple(replace(r, read=1e6) for r in runs(9e4, 9e4, 9e4, model="tiny")))
    assert history.correction("decode", "tiny").runs == 3
    assert history.correction("decode", "a").factor == 1.0


def test_bounds_narrow_with_runs_and_hold_what_scatters():
    few, many = (History(RATES, runs(*[40, 42, 38] * n)).correction("decode", "a") for n in (1, 8))
    assert UNKNOWN > few.deviation > many.deviation
    wild = History(RATES, runs(*[20, 40, 80] * 8)).correction("decode", "a")
    assert wild.deviation > 0.5
    assert many.apply(50).mid == pytest.approx(40)
    assert many.error == pytest.approx(1 - 40 / 45, abs=0.05)


def test_a_better_measurement_of_the_machine_mends_what_is_past():
    slow, fast = (History(replace(RATES, read_gb_s=x), runs(40, 40, 40)) for x in (25.0, 50.0))
    told = [h.correction("decode", "a").apply(h.rates.read_gb_s).mid for h in (slow, fast)]
    assert told == [pytest.approx(40)] * 2
    own = tuple(
        replace(r, read_gb_s=100.0, int8_gops=1000.0) for r in runs(80, 80, 80)
    )  # measured in the same minutes
    assert History(RATES, own).correction("decode", "a").factor == pytest.approx(0.8)


def test_runs_are_kept_by_machine(tmp_path: Path):
    record(tmp_path, [RUN, replace(RUN, machine="there")])
    record(tmp_path, [replace(RUN, measured=41.0)])
    assert read(tmp_path, "here", RATES).runs == (RUN, replace(RUN, measured=41.0))
    assert read(tmp_path / "nowhere", "here", RATES) == History(RATES)


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path):
    record(tmp_path, [RUN])
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'not json\n{"kind": "decode"}\n[]\n\xff\xfe\n{"kind": "decode", "raw"')  # cut short
    record(tmp_path, [RUN])
    record(tmp_path, [replace(RUN, measured=-1.0), replace(RUN, kind="other")])
    found = read(tmp_path, "here", RATES)
    assert (found.runs, found.damaged) == ((RUN, RUN), 7)


def test_the_file_has_a_bound_and_its_newer_half_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "MOST_BYTES", 4000)
    for i in range(100):
        record(tmp_path, [replace(RUN, depth=i)])
    depths = [r.depth for r in read(tmp_path, "here", RATES).runs]
    assert depths == list(range(100 - len(depths), 100))
    assert (tmp_path / FILE).stat().st_size <= 4000
    assert not list(tmp_path.glob("*.part"))
