"""The simulator takes many steps at once, and gives what one step after another gives; nothing is lost on the way."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.outgrow.capacity.engine import (
    EngineLimits,
    EngineModel,
    SimulatedEngine,
    SimulatedRequest,
    StepTime,
)
from freehold.outgrow.capacity.simulation import POLICIES, Autoscaling, PrefixAffinity, policy, simulate
from freehold.outgrow.capacity.trace import RequestTrace, TracedRequest, steady
from tests.outgrow.capacity.stepper import play

TIME = StepTime(
    (0, 1, 8, 64),
    (3.1e-3, 5.3e-3, 7.7e-3, 0.0191),
    depth=3e-7,
    prompt=5.3e-5,
    positions=1.1e-8,
    beside=1.3,
    arrival=2e-3,
    request=4e-3,
)
LIMITS = {
    "chunked": EngineLimits(streams=8, chunk=128),
    "unbounded": EngineLimits(chunk=0),
    "one at a time": EngineLimits(streams=1, chunk=64),
}
requests = st.lists(
    st.tuples(st.floats(0, 2, width=32), st.integers(1, 700), st.integers(1, 60)), min_size=1, max_size=25
)


def trace_of(rows: list[tuple[float, int, int]]) -> RequestTrace:
    return RequestTrace(tuple(TracedRequest(*row) for row in sorted(rows)), "made up")


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@settings(max_examples=60, deadline=None)
@given(requests)
def test_many_steps_at_once_give_what_one_after_another_gives(limits, rows):
    trace, model = trace_of(rows), EngineModel(TIME, limits)
    run, slow = simulate(trace, model), play(trace.requests, model)
    np.testing.assert_allclose(run.ttft, [s.first - s.request.at for s in slow], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(run.latency, [s.last - s.request.at for s in slow], rtol=1e-7, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(requests)
def test_a_paced_engine_is_simulated_within_what_its_costs_drift(rows):
    """Its chunks are sized anew every 512 positions, not at every step."""
    limits = EngineLimits(streams=8, chunk=512, pace=2.2, floor_s=0.004, alone_s=0.25, shortest=True)
    trace, model = trace_of(rows), EngineModel(TIME, limits)
    run, slow = simulate(trace, model), play(trace.requests, model)
    assert run.latency.sum() == pytest.approx(sum(s.last - s.request.at for s in slow), rel=0.05, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    requests,
    st.integers(1, 4),
    st.sampled_from(sorted(POLICIES)),
    st.integers(760, 2500),
    st.lists(st.integers(0, 5), min_size=25, max_size=25),
)
def test_every_token_is_made_once_and_all_memory_is_given_back(rows, replicas, routing, room, families):
    """Under preemption, a prefix cache and every routing policy."""
    block = 64
    made = []
    for (at, prompt, answer), family in zip(sorted(rows), families, strict=False):
        ids = tuple(family * 1000 + n for n in range(prompt // block))
        made.append(TracedRequest(at, prompt, answer, ids))
    trace = RequestTrace(tuple(made), "made up", block)
    engines: list[SimulatedEngine] = []

    class Noted(SimulatedEngine):
        def __init__(self, model: EngineModel, block: int = 0, ready_at: float = 0.0) -> None:
            super().__init__(model, block, ready_at)
            engines.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("freehold.outgrow.capacity.simulation.SimulatedEngine", Noted)
        run = simulate(
            trace, EngineModel(TIME, EngineLimits(streams=6, room=room, chunk=256)), replicas, routing=routing
        )
    assert len(run.ttft) + run.refused == len(trace.requests)
    assert run.answer_tokens == sum(r.answer for r in trace.requests if r.prompt + r.answer <= room)
    assert (run.ttft > 0).all() and (run.latency >= run.ttft - 1e-12).all()
    assert 0 <= run.hit_tokens <= run.prompt_tokens
    assert sum(e.busy_s for e in engines) <= run.replica_s + 1e-6
    for engine in engines:
        assert (engine.held, engine.outstanding, engine._depth, engine._unread) == (0, 0, 0, 0)


def test_an_answer_that_grows_out_of_memory_is_computed_again_and_its_first_token_stays():
    """Two prompts fit, their answers do not: the younger waits for the elder's end."""
    model = EngineModel(TIME, EngineLimits(streams=4, room=1000, chunk=512))
    run = simulate(trace_of([(0.0, 400, 400), (0.01, 300, 400)]), model)
    assert run.preempted >= 1
    assert run.latency[1] > run.latency[0] > 400 * 5e-3
    assert run.ttft[1] < 0.1


def test_a_request_larger_than_memory_is_refused_and_counted():
    run = simulate(trace_of([(0.0, 2000, 10), (0.0, 100, 10)]), EngineModel(TIME, EngineLimits(room=1000)))
    assert (run.refused, len(run.ttft)) == (1, 1)


def test_a_prefix_that_is_held_is_not_read_again_and_the_longest_unused_goes_first():
    one, two = tuple(range(8)), tuple(range(100, 108))
    rows = [(0.0, one), (10.0, one), (20.0, two), (30.0, one)]
    trace = RequestTrace(tuple(TracedRequest(at, 520, 4, ids) for at, ids in rows), "made up", 64)
    large = simulate(trace, EngineModel(TIME, EngineLimits(room=10_000)))
    small = simulate(trace, EngineModel(TIME, EngineLimits(room=600)))
    assert large.hit_tokens == 2 * 512
    assert large.ttft[1] < large.ttft[0] / 3
    assert small.hit_tokens == 512 + 64  # beside the second family there was room for the first block


def test_affinity_keeps_a_beginning_where_it_is_known_and_leaves_a_crowded_replica():
    chosen, loads = PrefixAffinity(), dict.fromkeys(range(4), 0)
    place = chosen.choose((7, 8, 9, 10), [0, 1, 2, 3], loads.__getitem__)
    assert chosen.choose((7, 8, 9, 99), [0, 1, 2, 3], loads.__getitem__) == place
    assert len({chosen.choose((n, n, n), [0, 1, 2, 3], loads.__getitem__) for n in range(40)}) == 4
    loads[place] = 10
    assert chosen.choose((7, 8, 9, 10), [0, 1, 2, 3], loads.__getitem__) != place


def test_affinity_hits_more_than_other_policies_where_families_share_beginnings():
    dice = random.Random(2)
    made = []
    for n in range(600):
        family = dice.randrange(60)
        ids = tuple(family * 100 + k for k in range(16))
        made.append(TracedRequest(n * 0.05, 1100, 20, ids))
    trace = RequestTrace(tuple(made), "made up", 64)
    model = EngineModel(TIME, EngineLimits(streams=16, room=20_000, chunk=512))
    rates = {name: simulate(trace, model, 4, routing=name).hit_rate for name in POLICIES}
    assert rates["prefix"] > 1.5 * max(rates["round-robin"], rates["least-loaded"])


def test_autoscaling_follows_a_burst_and_gives_replicas_back():
    calm, burst = steady(0.5, 200, 50, seconds=600), steady(30, 200, 50, seconds=300)
    made = [*calm.requests, *(TracedRequest(600 + r.at, r.prompt, r.answer) for r in burst.requests)]
    made += [
        TracedRequest(900 + r.at, r.prompt, r.answer) for r in steady(0.5, 200, 50, seconds=1200).requests
    ]
    trace = RequestTrace(tuple(made), "a burst")
    model = EngineModel(TIME, EngineLimits(streams=8, chunk=512))
    scaling = Autoscaling(1, 6, queue=4, start_s=30)
    scaled, one, six = (
        simulate(trace, model, scaling=scaling),
        simulate(trace, model, 1),
        simulate(trace, model, 6),
    )
    assert max(n for _, n in scaled.counts) > 2 and scaled.counts[-1][1] == 1
    assert six.percentile("ttft", 95) <= scaled.percentile("ttft", 95) < one.percentile("ttft", 95)
    assert one.replica_s < scaled.replica_s < six.replica_s / 2
    assert len(scaled.ttft) == len(trace.requests)


def test_a_target_for_autoscaling_is_one_and_possible():
    for wrong in ({}, {"queue": 4, "utilisation": 0.5}, {"utilisation": 1.5}, {"queue": 4, "every_s": 0}):
        with pytest.raises(UsageError):
            Autoscaling(1, 4, **wrong)
    with pytest.raises(UsageError, match="range"):
        Autoscaling(4, 1, queue=2)


def test_an_unknown_routing_policy_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError) as refused:
        policy("least-loadd")
    assert "least-loaded" in refused.value.hint


def test_percentiles_have_bounds_and_an_answer_of_one_token_has_no_pace():
    run = simulate(steady(5, 300, 40, seconds=200, vary=True), EngineModel(TIME, EngineLimits(streams=8)))
    bounds = run.bounded("ttft", 95)
    assert bounds.low < bounds.mid < bounds.high
    single = simulate(trace_of([(0.0, 10, 1)]), EngineModel(TIME))
    assert math.isnan(single.tpot[0]) and single.percentile("tpot", 95) == 0.0
    assert single.latency[0] == single.ttft[0]


def test_what_progress_raises_ends_a_simulation():
    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(steady(5, 30, 4, seconds=20), EngineModel(TIME), on_progress=stop)


def test_a_request_submitted_to_an_idle_engine_begins_at_its_arrival():
    engine, late = SimulatedEngine(EngineModel(TIME)), SimulatedRequest.of(TracedRequest(5.0, 10, 1), 0)
    engine.run(5.0)
    engine.submit(late)
    engine.run(math.inf)
    assert late.ttft == pytest.approx(TIME.arrival + TIME.request + TIME.seconds(0, 0, 10))
