"""Objectives are read in words, and the fewest replicas that keep them are found with a range."""

from __future__ import annotations

from dataclasses import replace

import pytest

from freehold.base.errors import UsageError
from freehold.outgrow.capacity.engine import EngineLimits, EngineModel, StepTime
from freehold.outgrow.capacity.simulation import Aim, least, parse, simulate
from freehold.outgrow.capacity.trace import steady

TIME = StepTime((0, 1, 32), (0.005, 0.01, 0.03), depth=2e-7, prompt=2e-4, arrival=1e-3, spread=0.2)
MODEL = EngineModel(TIME, EngineLimits(streams=8, chunk=512))
TRACE = steady(12, 400, 60, seconds=120, vary=True)


def test_objectives_are_read_and_wrong_ones_refused_with_the_way_out():
    assert parse("ttft-p95=2s, tpot-p50=50ms") == (Aim("ttft", 95, 2.0), Aim("tpot", 50, 0.05))
    for wrong in ("", "ttft=2s", "ttft-p95", "tftt-p95=2s", "ttft-p95=2h", "ttft-p100=1s", "ttft-p95=0s"):
        with pytest.raises(UsageError):
            parse(wrong)
    with pytest.raises(UsageError) as refused:
        parse("tfft-p95=2s")
    assert "ttft" in refused.value.hint


def test_the_fewest_replicas_keep_the_objective_and_one_fewer_does_not():
    aims = parse("ttft-p95=500ms,tpot-p95=40ms")
    found = least(TRACE, MODEL, aims)
    assert found.replicas is not None and found.replicas > 1 and not found.missed
    fewer = simulate(TRACE, MODEL, found.replicas - 1)
    assert not all(aim.met(fewer) for aim in aims)
    assert found.fewest is not None and found.most_needed is not None
    assert found.fewest <= found.replicas <= found.most_needed
    assert found.fewest < found.most_needed


def test_an_objective_that_no_number_keeps_is_said_to_be_missed():
    found = least(TRACE, MODEL, parse("tpot-p50=1ms"), most=16)
    assert found.replicas is None and found.missed == (Aim("tpot", 50, 0.001),)
    assert found.run.replicas == 16


def test_an_exact_step_gives_an_exact_number():
    exact = replace(MODEL, time=replace(TIME, spread=0.0))
    found = least(TRACE, exact, parse("ttft-p95=500ms"))
    assert found.fewest == found.replicas == found.most_needed
