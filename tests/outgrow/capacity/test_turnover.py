"""What a request takes beside its steps is recovered from requests that come and go."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from freehold.outgrow.capacity.engine import EngineModel, StepTime
from freehold.outgrow.capacity.measuring import TimedRequest, distance, fitted
from freehold.outgrow.capacity.simulation import simulate
from freehold.outgrow.capacity.trace import steady

TRUE = StepTime(
    (0, 1, 4, 16), (0.004, 0.006, 0.008, 0.02), 4e-7, 3e-4, 2e-8, beside=1.4, arrival=3e-3, request=2e-2
)


def answered(model: EngineModel, rate: float, seed: int) -> list[TimedRequest]:
    """Return what an engine shows of requests at a rate."""
    trace = steady(rate, 100, 24, seconds=60 / rate, seed=seed, vary=True)
    run = simulate(trace, model)
    times = zip(trace.requests, map(float, run.ttft), map(float, run.tpot), strict=True)
    return [TimedRequest(r.at, r.prompt, r.answer, ttft, tpot) for r, ttft, tpot in times]


def test_what_a_request_takes_is_recovered_at_few_and_at_many_requests():
    true = EngineModel(TRUE)
    # As prompts that are timed alone have it: all of it before the first step, and no answer waits.
    alone = replace(true, time=replace(TRUE, request=0.0, arrival=TRUE.arrival + TRUE.request))
    runs = [answered(true, 2.0, 1), answered(true, 6.0, 2)]
    found = fitted(alone, runs)
    assert found.time.request == pytest.approx(TRUE.request, rel=0.1)
    assert found.time.arrival == pytest.approx(TRUE.arrival, abs=2e-3)
    assert distance(found, runs) < 0.02 < distance(alone, runs)
    other = [answered(true, 4.0, 3)]
    assert distance(found, other) < 0.03 < distance(alone, other)


def test_an_engine_whose_server_takes_nothing_is_left_as_it_is():
    free = EngineModel(replace(TRUE, request=0.0))
    found = fitted(free, [answered(free, 4.0, 1)])
    assert found == free


def test_what_cannot_be_simulated_becomes_doubt():
    true = EngineModel(TRUE)
    odd = [replace(r, ttft=r.ttft * (4 if n % 2 else 0.25)) for n, r in enumerate(answered(true, 2.0, 1))]
    assert fitted(true, [odd]).time.spread > 0.1
    single = [replace(r, answer=1, tpot=math.nan) for r in answered(true, 2.0, 1)]
    assert math.isfinite(distance(true, [single]))


def test_without_such_requests_nothing_is_fitted():
    model = EngineModel(TRUE)
    assert fitted(model, [[]]) is model
