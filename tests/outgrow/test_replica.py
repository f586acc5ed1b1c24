"""One engine kept alive: ready is a token, any end is a death, a crash loop stops and says so."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.catalog.hardware import Rig
from freehold.choose.advisor.interval import Interval
from freehold.outgrow.contract import EngineNumbers, Nodes
from freehold.outgrow.planning.facts import processor
from freehold.outgrow.ray.app import SETTINGS
from freehold.outgrow.replicas.calls import EngineCalls
from freehold.outgrow.replicas.replica import DEFAULTS, Replica, ReplicaLimits, TalliedNumbers, hung_after
from freehold.route.providers.contract import UpstreamFault
from freehold.route.providers.hop import Hop
from tests.outgrow import engines
from tests.outgrow.engines import (
    HANGING,
    QUICK,
    RunningStandIn,
    StandInDriver,
    chat,
    operated,
    synchronous,
    until,
)


def running(
    folder: Path, driver: StandInDriver, limits: ReplicaLimits = QUICK
) -> AbstractAsyncContextManager[Replica]:
    return operated(engines.plan(folder, 1), driver, folder, limits)


@synchronous
async def test_engine_that_ends_with_status_zero_is_started_again(tmp_path: Path) -> None:
    control = tmp_path / "control"
    async with running(tmp_path, StandInDriver(control=control)) as replica:
        await until(lambda: replica.ready)
        await answered(replica)
        control.write_text("exit 0")
        await until(lambda: replica.restarts == 1 and replica.ready)
        assert replica.said.startswith("it ended (0)")


@pytest.mark.heavy
@synchronous
async def test_model_whose_first_request_ends_its_engine_is_never_ready_and_the_crash_loop_stops(
    tmp_path: Path,
) -> None:
    states = set[str]()
    async with running(tmp_path, StandInDriver(first_ends=1)) as replica:
        replica._changed = lambda: states.add(replica.state)
        await until(lambda: replica.hopeless)
        assert "ready" not in states and replica.state == "failed"
        assert "head_dim=16" in replica.said and "5 starts in a row" in replica.said
        assert "\n" not in replica.said
        assert replica.restarts == QUICK.useless - 1


@synchronous
async def test_engine_that_is_still_loading_is_ended_at_once(tmp_path: Path) -> None:
    """vLLM heeds no SIGTERM while it loads: waiting for it took longer than a server may take to end."""
    driver = StandInDriver(first_ends=1)
    async with running(tmp_path, driver) as replica:
        await until(lambda: bool(driver.engines))
        engine = driver.engines[-1]
        asked: list[str] = []
        engine.stop = lambda drain_s: asked.append("stop")  # type: ignore[method-assign, assignment]
        await replica.stop(30.0)
        assert replica.state == "stopped" and engine.ended.done() and asked == []


@synchronous
async def test_plan_that_is_refused_at_the_start_is_not_tried_again(tmp_path: Path) -> None:
    driver = StandInDriver()
    driver.refuses = "there is no program vllm"
    async with running(tmp_path, driver) as replica:
        await until(lambda: replica.hopeless)
        assert replica.said == "there is no program vllm; another start would end the same way"


@synchronous
async def test_engine_that_dies_too_often_is_given_up_however_useful_it_was(tmp_path: Path) -> None:
    control = tmp_path / "control"
    limits = replace(QUICK, deaths=2)
    async with running(tmp_path, StandInDriver(control=control), limits) as replica:
        for _ in range(2):
            await until(lambda: replica.ready)
            await answered(replica)
            control.write_text("exit 1")
            await until(lambda: not replica.ready)
        await until(lambda: replica.hopeless)
        assert "2 times in 10 minutes" in replica.said


@pytest.mark.heavy
@synchronous
async def test_hung_engine_is_killed_and_an_idle_one_is_not(tmp_path: Path) -> None:
    driver = StandInDriver(token_s=0.05)
    async with running(tmp_path, driver, HANGING) as replica:
        await until(lambda: replica.ready)
        await asyncio.sleep(1.5 * HANGING.hung_s)
        assert replica.ready and len(driver.engines) == 1
        assert replica.calls is not None
        replica.began()
        stream = await replica.calls.start(chat("endless", max_tokens=1000), limit_s=60)
        await asyncio.sleep(1.5 * HANGING.hung_s)
        assert replica.ready and len(driver.engines) == 1  # its counters move, though its stream is not read
        driver.engines[0].signal(signal.SIGSTOP)
        await until(lambda: replica.restarts == 1)
        assert replica.said.endswith("it hung")
        await stream.aclose()


@pytest.mark.heavy
@synchronous
async def test_engine_that_computes_one_long_step_is_not_hung(tmp_path: Path) -> None:
    """Of llama.cpp a text of thousands of tokens may be one step, in which no counter moves."""
    driver = StandInDriver()
    driver.busy_waits = False
    plan = replace(engines.plan(tmp_path, 1), nodes=Nodes(Rig(processor("", 2, 8 << 30, 20.0))))
    async with operated(plan, driver, tmp_path, replace(HANGING, busy_s=4.0)) as replica:
        await until(lambda: replica.ready)
        driver.engines[0].cpu_s = time.monotonic  # a processor's time, all of it
        driver.engines[0].signal(signal.SIGSTOP)
        replica.began()
        await asyncio.sleep(1.5 * HANGING.hung_s)
        assert replica.ready and len(driver.engines) == 1
        await until(lambda: replica.restarts == 1)  # but not for ever
        assert replica.said.endswith("it hung")


@pytest.mark.heavy
@synchronous
async def test_engine_without_counters_that_makes_a_long_answer_is_not_hung(tmp_path: Path) -> None:
    """As an attached one of another kind: an answer that is not streamed shows nothing until its end."""
    driver = StandInDriver()
    driver.metrics_path = ""
    async with running(tmp_path, driver, replace(HANGING, busy_s=4.0)) as replica:
        await until(lambda: replica.ready)
        replica.began()
        await asyncio.sleep(1.5 * HANGING.hung_s)
        assert replica.ready and len(driver.engines) == 1
        await until(lambda: replica.restarts == 1)  # but not for ever
        assert "nothing of an answer came" in replica.said


@synchronous
async def test_server_that_outlives_its_engine_is_killed(tmp_path: Path) -> None:
    control = tmp_path / "control"
    driver = StandInDriver(control=control, corpse_s=600)
    async with running(tmp_path, driver) as replica:
        await until(lambda: replica.ready)
        control.write_text("error")
        await until(lambda: not control.exists())
        for _ in range(QUICK.faults):
            assert replica.ready
            replica.faulted()
        assert replica.quiet
        await until(lambda: replica.restarts == 1)
        assert replica.said == "it failed 3 requests in a row, and then a single token"


@synchronous
async def test_start_that_stands_still_is_killed_and_a_slow_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = 0.0
    real = RunningStandIn.progress
    monkeypatch.setattr(RunningStandIn, "progress", lambda e: replace(real(e), since_s=since))
    limits = replace(QUICK, still_s=60.0, useless=1)
    async with running(tmp_path, StandInDriver(start_s=600), limits) as replica:
        await until(lambda: replica.row().pid > 0)
        await asyncio.sleep(0.3)
        assert replica.state == "starting"
        since = 61.0
        await until(lambda: replica.hopeless)
        assert "made no progress for 61 s while it was loading weights" in replica.said


@synchronous
async def test_engine_that_refuses_every_first_token_is_never_ready_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise UpstreamFault("invalid", "the prompt cannot be empty", status=400)

    monkeypatch.setattr(EngineCalls, "start", refused)
    async with running(tmp_path, StandInDriver(), replace(QUICK, refused_s=0.2, useless=1)) as replica:
        await until(lambda: replica.hopeless)
        assert "its first token failed: the prompt cannot be empty" in replica.said


def test_waits_between_useless_starts_double_to_a_limit(tmp_path: Path) -> None:
    replica = Replica(0, engines.plan(tmp_path), StandInDriver(), tmp_path, Hop())
    waits = []
    for useless in range(9):
        replica._useless = useless
        waits.append(replica._wait_s())
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_engine_with_long_steps_has_longer_before_it_counts_as_hung(tmp_path: Path) -> None:
    plan = engines.plan(tmp_path)
    assert hung_after(plan, DEFAULTS) == 20.0
    assert hung_after(replace(plan, prefill=Interval(5000.0, 6000.0, 7000.0)), DEFAULTS) == 20.0
    assert hung_after(replace(plan, prefill=Interval(100.0, 200.0, 300.0)), DEFAULTS) == 81.92
    assert hung_after(replace(plan, engine="ray"), DEFAULTS) > SETTINGS["stall_s"]


def test_counters_outlive_the_engine_and_gauges_do_not() -> None:
    tally = TalliedNumbers()
    first = EngineNumbers(3, 1, 100, 10, 50, 8, 0.5, {"a_total": 7.0, "b": 9.0})
    assert tally.update(first) and not tally.update(first)
    assert not tally.update(replace(first, running=0, series={"a_total": 7.0, "b": 1.0}))
    tally.engine_ended()
    assert tally.total == EngineNumbers(0, 0, 100, 10, 50, 8, None, {"a_total": 7.0})
    assert tally.update(EngineNumbers(1, 0, 5, 2, series={"a_total": 1.0}))
    assert tally.total == EngineNumbers(1, 0, 105, 12, 50, 8, None, {"a_total": 8.0})


async def answered(replica: Replica) -> None:
    """Have it answer one request, so that its engine was of use."""
    assert isinstance(replica.calls, EngineCalls)
    replica.began()
    stream = await replica.calls.start(chat("hello", max_tokens=1), limit_s=5)
    async for _ in stream:
        pass
    replica.ended(whole=True)
