"""Cost of the way to an engine process and back: streams of a model that computes nothing.

    python benches/server/wire.py

The engine process runs a script (worker/process/scripted.py), so that only EngineHandle, the socket, the threads and
the way back are measured; HTTP is not in it (benches/server/load.py). Ends in one JSON line.
Path: EngineModels.use -> EngineHandle.start -> socket -> ScriptedModel -> Frame -> EngineStream
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from freehold.base.config import Settings
from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.run.store import Store
from freehold.serve.worker.handle import EngineHandle
from freehold.serve.worker.models import EngineModels
from freehold.serve.worker.wire import Script

STEP_S = 0.01
SCRIPTS = {
    "paced": Script(words=1, step_s=STEP_S),
    "fast": Script(words=8),
    "many": Script(words=100, step_s=0.02),
}
JOB = Job(messages=(Message("user", "a b c"),))
STREAMS = 500


async def first_tokens(served: EngineHandle, count: int) -> float:
    """Return the median milliseconds to a first token beyond the step that makes it."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        async for _ in await served.start(JOB):
            seconds.append(time.perf_counter() - started)
            break  # what else comes is the end, which came with it
    return (statistics.median(seconds) - own_step(count)) * 1e3


def own_step(count: int) -> float:
    """Return the seconds a step of the script takes by itself: a sleep is longer than asked for."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        time.sleep(STEP_S)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


async def requests_a_second(served: EngineHandle, clients: int, each: int) -> float:
    """Return requests of eight tokens a second."""

    async def client() -> None:
        for _ in range(each):
            async for _ in await served.start(JOB):
                pass

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return clients * each / (time.perf_counter() - started)


async def many_streams(served: EngineHandle) -> dict[str, float]:
    """Read 500 streams at once; return their rate, and what a token costs this process."""

    async def read() -> int:
        return len([piece async for piece in await served.start(JOB)])

    started, cpu = time.perf_counter(), time.process_time()
    tokens = sum(await asyncio.gather(*(read() for _ in range(STREAMS))))
    cpu = time.process_time() - cpu
    return {"tok_s": tokens / (time.perf_counter() - started), "us_cpu_a_token": cpu / tokens * 1e6}


async def main() -> None:
    """Measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        models = EngineModels(Store(Settings(Path(folder))), scripts=SCRIPTS)
        figures: dict[str, Any] = {
            "first_token_over_step_ms": await first_tokens(await models.use("paced"), 60)
        }
        fast = await models.use("fast")
        figures |= {f"req_s_{n}": await requests_a_second(fast, n, 4000 // n) for n in (1, 16, 64)}
        figures |= await many_streams(await models.use("many"))
        await models.close()
    for name, value in figures.items():
        print(f"{name:26} {value:10.2f}")
    print(json.dumps({"bench": "wire", "machine": platform.machine(), **figures}))


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
