"""An engine that answers as none should: what it sends neither ends our watch of it nor is taken for what it is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiohttp import web

from freehold.base.errors import EngineLost
from freehold.base.serving import Job
from freehold.outgrow.contract import EngineDriver, EngineNumbers
from freehold.outgrow.engines.trtllm import DRIVER as TRTLLM
from freehold.outgrow.engines.vllm import DRIVER as VLLM
from freehold.outgrow.replicas.answer import MOST_HELD, DeployedStream
from freehold.outgrow.replicas.calls import EngineCalls
from freehold.route.providers.contract import UpstreamFault
from freehold.route.providers.hop import Hop
from freehold.route.providers.openai.events import CompletionReader
from tests.outgrow import engines
from tests.outgrow.engines import synchronous


@asynccontextmanager
async def calls(folder: Path, answer: Any, driver: EngineDriver = VLLM) -> AsyncIterator[EngineCalls]:
    """Ask a server that gives `answer` to everything: a body, or a coroutine of the request."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=answer) if isinstance(answer, bytes) else await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "s")).start()
    hop = Hop()
    engine = SimpleNamespace(plan=engines.plan(folder), url="http://engine/v1", key="", socket=folder / "s")
    try:
        yield EngineCalls(hop, driver, engine, "replica 0 of m")
    finally:
        await hop.close()
        await runner.cleanup()


# --- its metrics --------------------------------------------------------------------------------------

PAGES = [
    (VLLM, b"vllm:num_requests_running 1e308\nvllm:num_requests_running 1e308\n"),
    (VLLM, b"vllm:generation_tokens_total +Inf\nvllm:num_requests_running NaN\n"),
    (VLLM, b"vllm:num_requests_running -5\n"),
    (VLLM, b"\xff\xfe\x00"),
    (VLLM, b"vllm:num_requests_running 1\n" * 400_000),
    (TRTLLM, b"<html>"),
    (TRTLLM, b'[{"numActiveRequests": "many"}]'),
    (TRTLLM, b'[{"numActiveRequests": 99999999999999999999999999}]'),
    (TRTLLM, b'[{"iterLatencyMS": 1e308}]'),
    (TRTLLM, b"[" * 100_000),
]


@pytest.mark.parametrize("driver, page", PAGES, ids=[f"{d.name} {p[:40]!r}" for d, p in PAGES])
@synchronous
async def test_page_of_metrics_that_cannot_be_counted_counts_nothing(
    tmp_path: Path, driver: EngineDriver, page: bytes
) -> None:
    async with calls(tmp_path, page, driver) as asked:
        found = await asked.numbers(EngineNumbers())
        assert found is None or found.running == 0
        msgspec.json.encode(found)  # as `deploy status` does


# --- its tokenizer ------------------------------------------------------------------------------------

TOKENS = [
    b"",
    b"[]",
    b"{",
    b"\xff",
    b'{"tokens": "x"}',
    b'{"tokens": [-1]}',
    b'{"tokens": [1e99]}',
    b'{"tokens": [true]}',
]


@pytest.mark.parametrize(
    "said", [*TOKENS, b'{"tokens": [4294967296]}', b"[" * 100_000], ids=lambda s: repr(s[:24])
)
@synchronous
async def test_tokens_that_are_none_are_a_fault_of_the_engine(tmp_path: Path, said: bytes) -> None:
    async with calls(tmp_path, said) as asked:
        with pytest.raises(UpstreamFault):
            await asked.tokenize("x", special=True)


@synchronous
async def test_text_of_tokens_that_is_none_is_a_fault_of_the_engine(tmp_path: Path) -> None:
    async with calls(tmp_path, b'{"prompt": 7}') as asked:
        with pytest.raises(UpstreamFault):
            await asked.detokenize([1])


@pytest.mark.parametrize("ids", ["[-1]", "[2147483648]", "[1e9]", "[99999999999999999999999]"])
def test_ids_that_no_vocabulary_has_are_a_fault_of_the_engine(ids: str) -> None:
    for name in ("token_ids", "prompt_token_ids"):
        event = f'{{"choices": [{{"index": 0, "text": "x", "{name}": {ids}}}]}}'
        with pytest.raises(UpstreamFault):
            CompletionReader(ids=True).push("", event.encode())


def test_an_error_in_an_engine_s_words_does_not_reach_a_terminal_as_orders() -> None:
    event = json.dumps({"error": {"message": "no\x1b]52;c;eA==\x07 memory\u202e " + "x" * 10**6}}).encode()
    with pytest.raises(UpstreamFault) as error:
        CompletionReader().push("", event)
    assert error.value.message.isprintable() and "no ]52;c;eA== memory x" in error.value.message
    assert len(error.value.message) < 400


# --- its answers --------------------------------------------------------------------------------------


class OneReplica:
    """Implements answer.Replicas, and the replica that it returns."""

    def __init__(self, asked: EngineCalls) -> None:
        self.calls, self.number, self.plan = asked, 0, engines.plan(Path("/none"))
        self.retried = self.resumed = self.cut = self.faults = 0

    async def take(self, key: int | None, lost: set[EngineCalls], until: float) -> Any:
        return self

    def other(self, lost: set[EngineCalls]) -> bool:
        return False

    async def gone(self, calls: EngineCalls, most_s: float) -> bool:
        return False

    def moved(self) -> None:
        pass

    def faulted(self) -> None:
        self.faults += 1

    def ended(self, *, whole: bool) -> None:
        pass


def endless(choice: dict[str, Any]) -> Any:
    """Return an answer that sends one event for ever."""
    event = b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"

    async def answer(request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        while True:
            await reply.write(event * 50)
            await asyncio.sleep(0)

    return answer


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}])
@synchronous
async def test_answer_that_goes_on_beyond_all_that_was_asked_for_is_ended(
    tmp_path: Path, sampling: dict[str, float]
) -> None:
    async with calls(tmp_path, endless({"text": "x"})) as asked:
        replicas = OneReplica(asked)
        stream = DeployedStream(replicas, Job(prompt="x", max_tokens=4, sampling=sampling), None)
        await stream.open()
        count = 0
        with pytest.raises(EngineLost, match="more than was requested"):
            async for _ in stream:
                count += 1
        assert count <= 1008 and (replicas.cut, replicas.faults) == (1, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@synchronous
async def test_ids_without_text_are_not_held_without_a_limit(tmp_path: Path) -> None:
    async with calls(tmp_path, endless({"text": "", "token_ids": [7]})) as asked:
        job = Job(prompt="x", max_tokens=8000, sampling={"temperature": 0.0})
        stream = DeployedStream(OneReplica(asked), job, None)
        await stream.open()
        _, chunk = await anext(stream)
        assert len(chunk.token_ids) == MOST_HELD and not chunk.text
        await stream.aclose()
