"""The contract of a served model (serving.py), kept by every implementation of it."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from freehold.base.config import Settings
from freehold.base.errors import UnsupportedModel
from freehold.base.serving import (
    DelegatingHandle,
    DelegatingTokenizer,
    EmbedJob,
    Job,
    ModelDirectory,
    ModelHandle,
    ModelManager,
    Stream,
    TokenizerFace,
    tokenizer_of,
)
from freehold.base.types import Chunk, Message
from freehold.run.store import Store
from freehold.run.store.overlays import Overlay
from freehold.serve.http.core.accounts import Accounts
from freehold.serve.http.core.keys import Key
from freehold.serve.http.core.scope import ScopedDirectory
from freehold.serve.worker.models import AdaptedHandle, EngineModels, OverlaidHandle
from freehold.serve.worker.wire import Script
from tests.http.fakes import FakeModels

JOB = Job(prompt="a b c", sampling={"seed": 5}, n=2)
CHAT = Job(messages=(Message("user", "a b"),))


class WithoutTokenizer(DelegatingHandle):
    """A model of an upstream engine that offers no tokenizer."""

    @property
    def tokenizer(self) -> TokenizerFace | None:
        return None


Wrap = Callable[[ModelHandle], ModelHandle]
WRAPPERS: dict[str, Wrap] = {
    "plain": lambda handle: handle,
    "delegating": DelegatingHandle,
    "adapted": lambda handle: AdaptedHandle(handle, "one"),
    "overlaid": lambda handle: OverlaidHandle(handle, Overlay("made", "a")),
    "overlaid adapted": lambda handle: OverlaidHandle(AdaptedHandle(handle, "one"), Overlay("made", "a")),
    "without tokenizer": WithoutTokenizer,
}


@asynccontextmanager
async def managed(kind: str, home: Path) -> AsyncIterator[ModelManager]:
    """Yield models: of engine processes that run a script, or the fakes of the server's tests."""
    models: ModelManager = FakeModels(names=("a",))
    if kind == "engines":
        models = EngineModels(Store(Settings(home)), scripts={"a": Script(words=4)})
    try:
        yield models
    finally:
        await models.close(0.0)


def scoped(models: ModelManager, home: Path) -> ModelDirectory:
    return ScopedDirectory(models, Key(name="k", sha256="0" * 64), Accounts(home / "accounts"))


@pytest.mark.parametrize("kind", ["engines", "fakes"])
@pytest.mark.parametrize("scope", ["all", "scoped"])
def test_every_handle_keeps_the_contract(kind: str, scope: str, tmp_path: Path):
    async def main() -> None:
        async with managed(kind, tmp_path) as models:
            directory = models if scope == "all" else scoped(models, tmp_path)
            assert "a" in [each.name for each in await directory.names()]
            handle = await directory.use("a")
            assert [each.name for each in directory.loaded()] == ["a"] == [await directory.name_of("a")]
            for wrap in WRAPPERS.values():
                await keeps_the_contract(wrap(handle))

    asyncio.run(asyncio.wait_for(main(), 60))


async def keeps_the_contract(handle: ModelHandle) -> None:
    assert handle.name.startswith("a") and handle.info.context > 0 and handle.stats.steps >= 0
    await streams_end_after_each_answer(await handle.start(JOB))
    cut = await handle.start(JOB, keep_alive=60)
    await anext(cut)
    await cut.aclose()
    await cut.aclose()
    assert await handle.count(CHAT) == 2
    await embeds(handle)
    await tokenizes(handle)


async def streams_end_after_each_answer(stream: Stream) -> None:
    assert stream.begin.max_tokens > 0 and stream.begin.context > 0 and isinstance(stream.more, bool)
    finished: list[int] = []
    async for index, chunk in stream:
        assert index not in finished
        if chunk.finish_reason is not None:
            assert chunk.usage is not None and chunk.usage.prompt_tokens == len(stream.begin.prompt_ids)
            finished.append(index)
    await stream.aclose()
    assert sorted(finished) == [0, 1]


async def embeds(handle: ModelHandle) -> None:
    computed: list[int] = []
    vectors = await handle.embed(EmbedJob(("a b", "c")), None, computed.append)
    assert len(vectors.data) == 4 * vectors.width * 2
    assert sum(computed) == sum(vectors.tokens)


async def tokenizes(handle: ModelHandle) -> None:
    if handle.tokenizer is None:
        with pytest.raises(UnsupportedModel, match="a offers no tokenizer"):
            tokenizer_of(handle)
        return
    face = tokenizer_of(handle)
    ids = await face.tokenize("a b")
    assert len(ids) == 2 and await face.render(CHAT.messages or ()) == ids
    assert b"".join(await face.token_texts(ids)).decode() == await face.detokenize(ids)
    assert isinstance(await face.template(), dict)


def members(protocol: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(protocol) if not name.startswith("_")}


@pytest.mark.parametrize(
    "protocol, base", [(ModelHandle, DelegatingHandle), (TokenizerFace, DelegatingTokenizer)]
)
def test_delegation_passes_on_all_of_the_contract(protocol: type, base: type):
    assert members(protocol) <= members(base)
    for name in members(protocol):
        asked, given = inspect.getattr_static(protocol, name), inspect.getattr_static(base, name)
        if inspect.isfunction(asked):
            assert inspect.signature(asked) == inspect.signature(given), name


def test_a_metered_stream_without_prompt_ids_books_what_the_usage_counts(tmp_path: Path):
    """An upstream engine may report no ids of its prompt."""
    accounts = Accounts(tmp_path / "accounts")
    booked: list[int] = []
    accounts.spend = lambda name, tokens: booked.append(tokens)  # type: ignore[method-assign]

    class Unreported:
        def __init__(self, stream: Stream) -> None:
            self.begin = dataclasses.replace(stream.begin, prompt_ids=())
            self.more, self._stream = False, stream

        def __aiter__(self) -> Stream:
            return self._stream

        async def __anext__(self) -> tuple[int, Chunk]:
            return await self._stream.__anext__()

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Upstream(DelegatingHandle):
        async def start(self, job: Job, keep_alive: float | None = None) -> Stream:
            return Unreported(await self.handle.start(job, keep_alive))

    async def main() -> None:
        models: Any = FakeModels(names=("a",))
        use = models.use

        async def upstream(name: str, keep_alive: float | None = None) -> ModelHandle:
            return Upstream(await use(name, keep_alive))

        models.use = upstream
        handle = await ScopedDirectory(models, Key(name="k", sha256="0" * 64), accounts).use("a")
        stream = await handle.start(Job(prompt="a b c"))
        made = sum([len(chunk.token_ids) async for _, chunk in stream])
        await stream.aclose()
        assert booked == [3 + made]

    asyncio.run(main())
