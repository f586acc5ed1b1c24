"""Several replicas behind one name: no answer is cut in silence, whatever dies, and none fails while engines change."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.catalog.hardware import Rig
from freehold.base.errors import EngineClosed, EngineLost
from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Format
from freehold.outgrow.contract import DeployPlan, Nodes, ParallelSizes, PlannedFlag
from freehold.outgrow.replicas.calls import EngineCalls
from freehold.outgrow.replicas.deployment import ReplicaSet
from freehold.route.providers.contract import UpstreamFault
from freehold.route.providers.hop import Hop
from tests.outgrow import engines
from tests.outgrow.engines import (
    HANGING,
    QUICK,
    StandInDriver,
    chat,
    deployed,
    expected,
    joined,
    read,
    synchronous,
    until,
)
from tests.outgrow.plans import CPU
from tests.outgrow.standin import text

SHAPES = ("error", "abort", "cut", "kill", "hang")


@pytest.mark.heavy
@pytest.mark.parametrize("death", SHAPES)
@synchronous
async def test_stream_of_a_dead_replica_is_continued(tmp_path: Path, death: str) -> None:
    limits = HANGING if death == "hang" else QUICK
    async with deployed(tmp_path, StandInDriver(), limits=limits) as replicas:
        said = f"tell [[{death} 5]]"
        stream = await replicas.start(chat(said, logprobs=None))
        first = stream.begin.replica
        chunks = await read(stream)
        assert joined(chunks) == expected(said)
        usage = chunks[-1].usage
        assert usage is not None and chunks[-1].finish_reason == "length"
        prompt = text.encode(text.rendered([{"role": "user", "content": said}], open_end=False))
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), 12)
        assert usage.resumed_on == (1 - first,) and usage.resumed_tokens == 5
        assert sum((chunk.token_ids for chunk in chunks), ()) == tuple(text.encode(expected(said)))
        assert (replicas.resumed, replicas.cut) == (1, 0)
        await until(lambda: [r.restarts for r in replicas if not r.ready] == [] and restarts(replicas) == 1)


@synchronous
async def test_replicas_of_one_machine_are_started_with_devices_of_their_own(tmp_path: Path) -> None:
    hop = Hop()
    plan = replace(engines.plan(tmp_path), sizes=ParallelSizes())  # two devices, and a replica takes one
    replicas = ReplicaSet(plan, StandInDriver(), tmp_path, hop, limits=QUICK)
    replicas.run()
    seen = [replica.plan.environment["CUDA_VISIBLE_DEVICES"] for replica in replicas]
    await replicas.stop(0.0)
    await hop.close()
    assert seen == ["0", "1"]


@pytest.mark.heavy
@synchronous
async def test_completion_is_continued_by_ids_and_a_bound_of_one_token_more_holds(tmp_path: Path) -> None:
    async with deployed(tmp_path, StandInDriver()) as replicas:
        for most in (6, 20):
            said = f"x{most} [[cut 5]]"
            job = Job(prompt=said, max_tokens=most, sampling={"temperature": 0.0})
            assert joined(await read(await replicas.start(job))) == text.answer(said, most)
            await until(lambda: all(replica.ready for replica in replicas))


@synchronous
async def test_answer_in_a_format_is_computed_again_and_what_was_sent_is_left_out(tmp_path: Path) -> None:
    async with deployed(tmp_path, StandInDriver(token_s=0.02)) as replicas:
        stream = await replicas.start(chat("as JSON", format=Format("json")))
        chunks = [chunk for _, chunk in [await anext(stream) for _ in range(3)]]
        await killed(replicas, stream.begin.replica)
        chunks += await read(stream)
        assert joined(chunks) == expected("as JSON")
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12


@synchronous
async def test_sampled_answer_without_a_seed_ends_with_an_error(tmp_path: Path) -> None:
    async with deployed(tmp_path, StandInDriver()) as replicas:
        stream = await replicas.start(chat("any [[cut 3]]", sampling={}))
        with pytest.raises(EngineLost, match="not greedy"):
            await read(stream)
        assert replicas.cut == 1


@pytest.mark.heavy
@pytest.mark.parametrize("stop", [(), ("never said",)], ids=["from its ids", "computed again"])
@synchronous
async def test_seeded_answer_continues(tmp_path: Path, stop: tuple[str, ...]) -> None:
    async with deployed(tmp_path, StandInDriver(token_s=0.02)) as replicas:
        stream = await replicas.start(chat("any", sampling={"seed": 7}, stop=stop))
        chunks = [chunk for _, chunk in [await anext(stream) for _ in range(3)]]
        await killed(replicas, stream.begin.replica)
        chunks += await read(stream)
        said = text.rendered([{"role": "user", "content": "any"}], open_end=False)
        assert joined(chunks) == text.answer(said, 12, salt="7")
        usage = chunks[-1].usage
        assert usage is not None and usage.completion_tokens == 12 and usage.resumed_tokens >= 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("whole", [False, True])
@synchronous
async def test_request_is_asked_again_elsewhere_before_its_first_token(
    tmp_path: Path, number: int, whole: bool
) -> None:
    limits = HANGING if number == signal.SIGSTOP else QUICK
    async with deployed(tmp_path, StandInDriver(token_s=0.1), limits=limits) as replicas:
        asked = asyncio.create_task(replicas.start(chat("slow", max_tokens=3, sampling={}, whole=whole)))
        await until(lambda: any(replica.in_flight for replica in replicas))
        await asyncio.sleep(0.05)
        victim = next(replica.number for replica in replicas if replica.in_flight)
        await killed(replicas, victim, number)
        stream = await asked
        assert stream.begin.replica != victim
        assert len(text.encode(joined(await read(stream)))) == 3
        assert (replicas.retried, replicas.resumed, replicas.cut) == (1, 0, 0)


@synchronous
async def test_model_that_gives_vectors_is_ready_by_a_vector_and_asked_again_where_an_engine_dies(
    tmp_path: Path,
) -> None:
    """vLLM with --runner pooling answers no completion."""
    plan = engines.plan(tmp_path)
    embedder = replace(plan.model, anatomy=replace(plan.model.anatomy, role="embedder"))
    plan = replace(plan, model=embedder, flags=(PlannedFlag("--runner", "pooling", "it gives vectors"),))
    hop, driver = Hop(), StandInDriver()
    replicas = ReplicaSet(plan, driver, tmp_path, hop, limits=QUICK)
    try:
        replicas.run()
        await until(lambda: all(replica.ready for replica in replicas))
        await killed(replicas, 0)
        for _ in range(4):
            assert len((await replicas.embed(EmbedJob(("a", "b")), 10.0)).tokens) == 2
        assert replicas.requests == 4
    finally:
        await replicas.stop(0.0)
        await hop.close()


@pytest.mark.heavy
@synchronous
async def test_request_that_ends_whatever_computes_it_ends_three_engines_and_no_more(tmp_path: Path) -> None:
    async with deployed(tmp_path, StandInDriver(), replicas=1) as replicas:
        replicas.replica(0).driver.options_now["first_ends"] = 1  # type: ignore[attr-defined]
        await killed(replicas, 0)
        with pytest.raises(EngineLost, match="starts in a row came to nothing"):
            await replicas.start(chat("hello"))
        assert "head_dim=16" in replicas.replica(0).said
        assert replicas.replica(0).state == "failed"


@pytest.mark.heavy
@synchronous
async def test_stop_in_the_middle_of_a_roll_starts_no_further_engine(tmp_path: Path) -> None:
    driver = StandInDriver(token_s=0.02)
    async with deployed(tmp_path, driver) as replicas:
        streams = [await replicas.start(chat(f"long {i}", max_tokens=40)) for i in range(2)]
        rolling = asyncio.create_task(replicas.roll(replicas.plan, "restart", drain_first=True))
        await until(lambda: any(replica.state == "draining" for replica in replicas))
        stopping = asyncio.create_task(replicas.stop(10.0))
        assert [joined(await read(stream)) for stream in streams] == [
            expected(f"long {i}", 40) for i in range(2)
        ]
        await stopping
        with pytest.raises(EngineClosed, match="being stopped"):
            await rolling
        assert len(driver.engines) == 2


@pytest.mark.heavy
@synchronous
async def test_restart_and_upgrade_under_load_fail_no_request(tmp_path: Path) -> None:
    async with deployed(tmp_path, StandInDriver(token_s=0.002)) as replicas:
        over, answered = asyncio.Event(), []

        async def client(number: int) -> None:
            while not over.is_set():
                said = f"client {number} asks {len(answered)}"
                assert joined(await read(await replicas.start(chat(said)))) == expected(said)
                answered.append(number)

        clients = [asyncio.create_task(client(i)) for i in range(8)]
        before = pids(replicas)
        await replicas.roll(replicas.plan, "restart")
        between = pids(replicas)
        await replicas.roll(replace(engines.plan(tmp_path, 3), version="0.33.0"), "upgrade")
        over.set()
        await asyncio.gather(*clients)
        assert not before & between and not between & pids(replicas)
        assert [replica.plan.version for replica in replicas] == ["0.33.0"] * 3
        assert len(answered) > 50 and (replicas.cut, replicas.retried) == (0, 0)


@pytest.mark.heavy
@synchronous
async def test_upgrade_that_never_becomes_ready_leaves_the_old_replicas(tmp_path: Path) -> None:
    driver = StandInDriver()
    async with deployed(tmp_path, driver) as replicas:
        before = pids(replicas)
        driver.options_now["die_at_start"] = "ValueError: no such flag"
        with pytest.raises(EngineLost, match="no such flag"):
            await replicas.roll(replace(replicas.plan, version="0.33.0"), "upgrade")
        assert pids(replicas) == before and replicas.rolling == ""
        assert joined(await read(await replicas.start(chat("still")))) == expected("still")


def full(plan: DeployPlan) -> DeployPlan:
    """Return a plan whose engines take nearly all memory of their devices, as vLLM does."""
    return replace(plan, memory_bytes=plan.nodes.rig.memory_bytes * 9 // 10)


def running_together(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets, at each launch, how many engines run then."""
    seen: list[int] = []
    real = driver.launch

    async def launch(plan: DeployPlan, folder: Path):
        seen.append(sum(not engine.ended.done() for engine in driver.engines))
        return await real(plan, folder)

    monkeypatch.setattr(driver, "launch", launch)
    return seen


@pytest.mark.heavy
@synchronous
async def test_roll_on_full_devices_ends_each_engine_before_the_next_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StandInDriver(token_s=0.002)
    async with deployed(tmp_path, driver) as replicas:
        before, seen, over = pids(replicas), running_together(driver, monkeypatch), asyncio.Event()
        replicas.plan = full(replicas.plan)

        async def client(number: int) -> None:
            while not over.is_set():
                said = f"client {number} asks"
                assert joined(await read(await replicas.start(chat(said)))) == expected(said)

        clients = [asyncio.create_task(client(i)) for i in range(4)]
        await replicas.roll(replace(replicas.plan, version="0.33.0"), "upgrade")
        over.set()
        await asyncio.gather(*clients)
        assert seen == [1, 1]  # the other one answers meanwhile
        assert not before & pids(replicas) and (replicas.cut, replicas.gap_s) == (0, 0.0)
        assert [replica.plan.version for replica in replicas] == ["0.33.0"] * 2


@pytest.mark.heavy
@synchronous
async def test_single_replica_that_is_drained_first_leaves_a_gap_in_which_requests_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StandInDriver(token_s=0.01)
    async with deployed(tmp_path, driver, replicas=1) as replicas:
        seen = running_together(driver, monkeypatch)
        running = await replicas.start(chat("the last one"))
        roll = asyncio.create_task(replicas.roll(replicas.plan, "restart", drain_first=True))
        await until(lambda: not replicas.ready)
        waiting = asyncio.create_task(replicas.start(chat("the next one")))
        assert joined(await read(running)) == expected("the last one")
        await roll
        assert joined(await read(await waiting)) == expected("the next one")
        assert seen == [0] and replicas.row().gap_s > 0 and replicas.row().replicas[0].load_s > 0


@pytest.mark.heavy
@synchronous
async def test_new_engine_that_fails_on_a_full_device_gives_way_to_the_old_command(tmp_path: Path) -> None:
    driver = StandInDriver()
    async with deployed(tmp_path, driver) as replicas:
        last = replicas.replica(1).row().pid
        driver.options_now["die_at_start"] = "ValueError: no such flag"
        replicas.plan = full(replicas.plan)
        with pytest.raises(EngineLost, match="no such flag") as lost:
            await replicas.roll(replace(replicas.plan, version="0.33.0"), "upgrade")
        del driver.options_now["die_at_start"]
        assert "started again" in lost.value.hint and replicas.rolling == ""
        await until(lambda: all(replica.ready for replica in replicas))
        assert [replica.plan.version for replica in replicas] == ["0.32.0"] * 2
        assert replicas.replica(1).row().pid == last
        assert joined(await read(await replicas.start(chat("still")))) == expected("still")


def test_room_for_a_second_engine_is_the_devices_on_gpus_and_the_machines_on_processors(
    tmp_path: Path,
) -> None:
    gpus = replace(engines.plan(tmp_path), memory_bytes=60 << 30)  # two of 80 GB together
    assert gpus.room_beside(gpus) and not full(gpus).room_beside(gpus) and not gpus.room_beside(full(gpus))
    assert not replace(gpus, nodes=replace(gpus.nodes, free=0.5)).room_beside(gpus)
    here = replace(gpus, nodes=Nodes(Rig(CPU)), memory_bytes=3 << 30)  # 8 GiB, two replicas
    assert not here.room_beside(here) and replace(here, replicas=1).room_beside(here)
    unknown = replace(here, memory_bytes=0)
    assert unknown.room_beside(unknown)


@synchronous
async def test_chats_with_one_beginning_meet_one_cache_and_short_ones_spread(tmp_path: Path) -> None:
    async with deployed(tmp_path, StandInDriver()) as replicas:
        long = [f"{name} " * 100 for name in ("ada", "bob", "cy", "dora", "eve", "finn")]
        for said in long:
            met = {(await asked(replicas, said)).replica for _ in range(4)}
            assert len(met) == 1
        assert {(await asked(replicas, "hi")).replica for _ in range(4)} == {0, 1}


async def asked(replicas: ReplicaSet, said: str):
    stream = await replicas.start(chat(said, max_tokens=1))
    await read(stream)
    return stream.begin


async def killed(replicas: ReplicaSet, number: int, by: int = signal.SIGKILL) -> None:
    replica = replicas.replica(number)
    driver = replica.driver
    assert isinstance(driver, StandInDriver)
    driver.engine_of(replica.row().pid).signal(by)


def restarts(replicas: ReplicaSet) -> int:
    return sum(replica.restarts for replica in replicas)


def pids(replicas: ReplicaSet) -> set[int]:
    return {replica.row().pid for replica in replicas}


@pytest.mark.heavy
@synchronous
async def test_only_replica_that_dies_under_requests_is_waited_for(tmp_path: Path) -> None:
    async with deployed(tmp_path, StandInDriver(), replicas=1) as replicas:
        for death in ("error", "cut"):
            said = f"alone [[{death} 4]]"
            assert joined(await read(await replicas.start(chat(said)))) == expected(said)
        assert replicas.replica(0).restarts == 2 and replicas.cut == 0


@synchronous
async def test_connection_that_a_living_engine_refused_once_is_not_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[object] = []
    real = EngineCalls.start

    async def start(calls: EngineCalls, job: Job, *, limit_s: float):
        if not refused:
            refused.append(job)
            raise UpstreamFault("connect", "it closed the connection")
        return await real(calls, job, limit_s=limit_s)

    async with deployed(tmp_path, StandInDriver(), replicas=1) as replicas:
        monkeypatch.setattr(EngineCalls, "start", start)
        assert joined(await read(await replicas.start(chat("hi")))) == expected("hi")
        assert refused and restarts(replicas) == 0
