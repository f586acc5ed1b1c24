"""A tiny random model in a store of its own, and models made and closed around an asyncio test."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from freehold.base.config import Settings
from freehold.base.serving import Job
from freehold.base.types import Chunk
from freehold.run.store import ModelRef, Store
from freehold.serve.worker import handle
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.handle import EngineHandle
from freehold.serve.worker.models import EngineModels
from tests.vectors.files import write_gguf

Body = Callable[[EngineModels], Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRef]:
    """Two models of a megabyte, as the command line would have named them."""
    folder = tmp_path_factory.mktemp("worker")
    refs = {}
    for name, family in (("tiny", "qwen2"), ("other", "llama")):
        path = write_gguf(family, folder / f"{name}.gguf", dtype="Q8_0")
        refs[name] = ModelRef(name, path, "gguf", "", path.stat().st_size, "user", "", "", (path,))
    return refs


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs `body(models)` in a loop of its own and closes the models, whatever happens."""
    monkeypatch.setattr(handle, "FIRST_WAIT_S", 0.01)

    def run(body: Body, options: EngineOptions | None = None, **wanted: Any) -> None:
        async def main() -> None:
            models = EngineModels(Store(Settings(tmp_path)), options or EngineOptions(), **wanted)
            try:
                await asyncio.wait_for(body(models), 180)
            finally:
                await models.close()

        asyncio.run(main())

    return run


async def answers(served: EngineHandle, job: Job, kill_at: Iterable[int] = ()) -> list[list[Chunk]]:
    """Read a job's answers; kill the engine each time the first one has as many tokens as `kill_at` says.

    An engine may have made all of an answer before the test is let at it: then the job is asked again.
    """
    for _ in range(20):
        got, missed = await _answers(served, job, kill_at)
        if not missed:
            return got
    raise AssertionError("the answer was shorter than the deaths planned for it, twenty times over")


async def _answers(
    served: EngineHandle, job: Job, kill_at: Iterable[int]
) -> tuple[list[list[Chunk]], list[int]]:
    """Return the answers, and the deaths that there was no time for.

    What a dead engine had sent still comes: the next death waits until this one was seen.
    """
    stream = await served.start(job)
    got: list[list[Chunk]] = [[] for _ in range(job.n)]
    kills = sorted(kill_at, reverse=True)
    deaths = served.restarts if kills else 0  # a wrapper of a handle has no deaths to plan
    async for index, chunk in stream:
        got[index].append(chunk)
        if kills and len(tokens(got[0])) >= kills[-1] and served.restarts == deaths and served.pid:
            kills.pop()
            deaths += 1
            os.kill(served.pid, signal.SIGKILL)
            await asyncio.sleep(0)
    return got, kills


def tokens(chunks: Iterable[Chunk]) -> list[int]:
    """The token ids of an answer."""
    return [id for chunk in chunks for id in chunk.token_ids]


def text(chunks: Iterable[Chunk]) -> str:
    """The text of an answer."""
    return "".join(chunk.text for chunk in chunks)
