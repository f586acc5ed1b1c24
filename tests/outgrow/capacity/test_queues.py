"""Where queueing theory has an answer, the simulator gives it."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from freehold.outgrow.capacity.engine import EngineLimits, EngineModel, StepTime
from freehold.outgrow.capacity.simulation import simulate
from freehold.outgrow.capacity.trace import RequestTrace, TracedRequest

TOKEN_S = 1e-3  # a step, whatever its batch: so each stream is a server of its own


def waits(load: float, servers: int, fixed: bool, count: int, seed: int) -> tuple[np.ndarray, RequestTrace]:
    """Simulate `count` requests of 1 s at the mean for `servers` streams; return what each waits for a stream."""
    dice, at, made = random.Random(seed), 0.0, []
    for _ in range(count):
        at += dice.expovariate(load * servers)
        service = 1.0 if fixed else dice.expovariate(1.0)
        made.append(TracedRequest(at, 1, max(round(service / TOKEN_S), 1)))
    trace = RequestTrace(tuple(made), "a queue")
    model = EngineModel(StepTime((0, 1), (TOKEN_S, TOKEN_S)), EngineLimits(streams=servers, chunk=0))
    return simulate(trace, model).ttft - TOKEN_S, trace


def erlang_c(servers: int, load: float) -> float:
    """Return the probability of waiting in M/M/c."""
    offered = servers * load
    last = offered**servers / math.factorial(servers) / (1 - load)
    return last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "load, servers, fixed, seed",
    [(0.5, 1, False, 5), (0.7, 1, True, 1), (0.6, 4, False, 3)],
    ids=["M/M/1", "M/D/1", "M/M/4"],
)
def test_mean_waits_are_those_of_queueing_theory(load, servers, fixed, seed):
    found, _ = waits(load, servers, fixed, 80_000, seed)
    theory = load / (2 * (1 - load)) if fixed else erlang_c(servers, load) / (servers * (1 - load))
    assert float(found.mean()) == pytest.approx(theory, rel=0.02)


def test_each_wait_is_that_of_lindleys_recursion():
    """Not the mean alone: every request, to half a step, which is what an arrival waits for a step to end."""
    found, trace = waits(0.7, 1, False, 5000, 9)
    wait, free = [], 0.0
    for request in trace.requests:
        begin = max(free, request.at)
        wait.append(begin - request.at)
        free = begin + request.answer * TOKEN_S
    np.testing.assert_allclose(found, wait, atol=2 * TOKEN_S)
