"""A cluster is one replica of ours, and more than one engine: what one of its engines failed, another answers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.outgrow.contract import DeployPlan, Listens
from freehold.outgrow.replicas import answer
from freehold.outgrow.replicas.deployment import ReplicaSet
from freehold.route.providers.hop import Hop
from tests.outgrow import engines
from tests.outgrow.engines import (
    QUICK,
    RunningStandIn,
    StandInDriver,
    chat,
    expected,
    joined,
    read,
    synchronous,
    until,
)


class ClusterDriver(StandInDriver):
    """Two stand-ins behind one socket, asked in turn; a dead one is passed over. A third stands for the head."""

    async def launch(self, plan: DeployPlan, folder: Path) -> RunningStandIn:
        sockets = [folder / f"s{i}.sock" for i in range(3)]
        alone = [replace(plan, listens=Listens(socket), inner=None) for socket in sockets]
        started = [await super(ClusterDriver, self).launch(each, folder) for each in alone]
        turn = iter(range(1 << 30))

        async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = next(turn)
            for at in (first, first + 1):
                with suppress(OSError):
                    there, to = await asyncio.open_unix_connection(sockets[at % 2])
                    await asyncio.gather(pumped(reader, to), pumped(there, writer))
                    return
            writer.close()

        await asyncio.start_unix_server(passed, plan.listens.socket)
        started[2].plan, started[2].socket = plan, plan.listens.socket
        return started[2]


async def pumped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while part := await reader.read(1 << 16):
            writer.write(part)
    writer.close()


@asynccontextmanager
async def cluster(folder: Path, driver: ClusterDriver) -> AsyncIterator[ReplicaSet]:
    one = engines.plan(folder, 1)
    hop = Hop()
    found = ReplicaSet(replace(one, engine="ray", inner=one), driver, folder, hop, limits=QUICK)
    try:
        found.run()
        await until(lambda: all(replica.ready for replica in found))
        yield found
    finally:
        await found.stop(0.0)
        for engine in driver.engines:
            engine.signal(signal.SIGKILL)
            await asyncio.shield(engine.ended)
        await hop.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "AGAIN_S", 0.02)


@synchronous
async def test_stream_of_a_clusters_dead_replica_is_continued_by_the_cluster(tmp_path: Path) -> None:
    driver = ClusterDriver(token_s=0.02)
    async with cluster(tmp_path, driver) as replicas:
        stream = await replicas.start(chat("tell me"))
        chunks = [chunk for _, chunk in [await anext(stream) for _ in range(3)]]
        driver.engines[1].signal(signal.SIGKILL)
        chunks += await read(stream)
        again = await read(await replicas.start(chat("tell me")))
        assert joined(chunks) == joined(again) == expected("tell me")
        assert (replicas.cut, replicas.requests) == (0, 2)


@pytest.mark.heavy
@synchronous
async def test_a_torn_answer_goes_through_the_same_door_again(tmp_path: Path) -> None:
    async with cluster(tmp_path, ClusterDriver()) as replicas:
        said = "tell [[cut 5]]"
        chunks = await read(await replicas.start(chat(said)))
        assert joined(chunks) == expected(said)
        usage = chunks[-1].usage
        assert usage is not None and usage.resumed_tokens == 5
        assert set(usage.resumed_on) == {0}  # a busy machine may need a second attempt
        assert replicas.resumed >= 1 and replicas.cut == 0
        assert [replica.restarts for replica in replicas] == [0]
