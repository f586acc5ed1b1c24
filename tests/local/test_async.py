"""AsyncLLM: the answers of LLM, in one batch for all tasks of a loop, and nothing left behind."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import freehold
from freehold import AsyncLLM
from freehold.base.errors import EngineClosed, UsageError
from freehold.run.local.answering import LocalJob
from freehold.run.local.jobs import DEFAULTS, ChatOptions, GenerateOptions, LoadOptions
from freehold.run.local.llm import LLM
from freehold.run.local.opening import load
from tests.vectors.files import write_gguf

ENDLESS = {"logit_bias": {3: -100.0}}  # token 3 ends the tiny model's answers


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    path = write_gguf("qwen2", tmp_path_factory.mktemp("async") / "tiny.gguf", dtype="Q8_0")
    with freehold.load(path, context=512, threads=1) as loaded:
        yield loaded


def slow(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step take five milliseconds, so that an answer is still running when the test looks at it."""
    step = llm._engine.step
    monkeypatch.setattr(llm._engine, "step", lambda: time.sleep(0.005) or step())


def run(llm: LLM, body: Callable[[AsyncLLM], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(body(AsyncLLM(llm)), 120))


def test_tasks_get_the_answers_that_each_gets_alone(llm: LLM):
    want = [llm.chat(f"say {i}", max_tokens=12, seed=i) for i in range(8)]

    async def body(model: AsyncLLM) -> list[freehold.Completion]:
        return await asyncio.gather(*(model.chat(f"say {i}", max_tokens=12, seed=i) for i in range(8)))

    got = run(llm, body)
    assert [c.token_ids for c in got] == [c.token_ids for c in want]
    assert [c.text for c in got] == [c.text for c in want] and [c.seed for c in got] == list(range(8))


def test_tasks_share_steps(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    """The first step waits until all eight have entered: a busy machine prepares them at different times."""
    before, entered, all_entered = llm.stats.steps, [], threading.Event()
    enter, step = LocalJob.enter, llm._engine.step

    def noted(answering: LocalJob) -> None:
        enter(answering)
        entered.append(answering)
        if len(entered) == 8:
            all_entered.set()

    monkeypatch.setattr(LocalJob, "enter", noted)
    monkeypatch.setattr(llm._engine, "step", lambda: all_entered.wait(60) and step())

    async def body(model: AsyncLLM) -> Any:
        return await asyncio.gather(*(model.chat("hi", max_tokens=40, seed=i, **ENDLESS) for i in range(8)))

    run(llm, body)
    assert llm.stats.steps - before < 2 * 40  # eight answers one after the other take 8 * 40


def test_stream_yields_the_chunks_of_the_answer(llm: LLM):
    want = llm.chat("hi", max_tokens=12, seed=3)

    async def body(model: AsyncLLM) -> list[freehold.Chunk]:
        return [chunk async for chunk in model.stream("hi", max_tokens=12, seed=3)]

    chunks = run(llm, body)
    assert "".join(c.text for c in chunks) == want.text
    assert chunks[-1].finish_reason == want.finish_reason and chunks[-1].usage is not None


def test_batch_is_answered_in_order_and_an_error_names_the_prompt(llm: LLM):
    want = [llm.generate(p, max_tokens=6, seed=1).token_ids for p in ("a", "b c")]

    async def body(model: AsyncLLM) -> None:
        got = await model.generate(["a", "b c"], max_tokens=6, seed=1)
        assert [c.token_ids for c in got] == want
        with pytest.raises(UsageError, match=r"^prompt 1: token id 99999999"):
            await model.generate([[1], [99999999]])

    run(llm, body)


def test_a_cancelled_task_stops_its_request(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    slow(llm, monkeypatch)

    async def body(model: AsyncLLM) -> None:
        task = asyncio.ensure_future(model.chat("hi", seed=1, **ENDLESS))
        while llm.stats.running == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await model.chat("hi", max_tokens=2)).usage.completion_tokens == 2
        assert llm.stats.running == 0

    run(llm, body)


def test_leaving_a_stream_early_frees_its_blocks(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    slow(llm, monkeypatch)

    async def body(model: AsyncLLM) -> None:
        stream = model.stream("hi", seed=1, **ENDLESS)
        async for _ in stream:
            break
        await stream.aclose()
        await model.chat("hi", max_tokens=1)
        assert llm.stats.running == 0 and llm.stats.blocks_live == 0

    run(llm, body)


def test_the_stepping_thread_ends_with_the_last_request(llm: LLM):
    async def body(model: AsyncLLM) -> None:
        await model.chat("hi", max_tokens=2)
        while any(t.name == "freehold-steps" for t in threading.enumerate()):
            await asyncio.sleep(0.001)
        await model.chat("hi", max_tokens=2)  # and the next request starts another

    run(llm, body)


def test_threads_may_use_the_model_beside_tasks(llm: LLM):
    want = [llm.chat("x", max_tokens=30, seed=9).token_ids, llm.chat("y", max_tokens=30, seed=9).token_ids]

    async def body(model: AsyncLLM) -> None:
        beside = asyncio.to_thread(model.llm.chat, "x", max_tokens=30, seed=9)
        got = await asyncio.gather(beside, model.chat("y", max_tokens=30, seed=9), model.embed("z"))
        assert [c.token_ids for c in got[:2]] == want

    run(llm, body)


def test_closing_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def body() -> None:
        path = write_gguf("qwen2", tmp_path / "tiny.gguf", dtype="Q8_0")
        async with await AsyncLLM.load(path, context=512, threads=1) as model:
            slow(model.llm, monkeypatch)
            task = asyncio.ensure_future(model.chat("hi", seed=1, **ENDLESS))
            while model.llm.stats.running == 0:
                await asyncio.sleep(0.001)
        with pytest.raises(EngineClosed):
            await task
        with pytest.raises(EngineClosed):
            await model.chat("hi")

    asyncio.run(asyncio.wait_for(body(), 120))


@pytest.mark.parametrize(
    "options, call",
    [
        *((ChatOptions, call) for call in (LLM.chat, LLM.stream, AsyncLLM.chat, AsyncLLM.stream)),
        *((GenerateOptions, call) for call in (LLM.generate, LLM.stream_text, AsyncLLM.generate)),
        *((LoadOptions, call) for call in (load, AsyncLLM.load)),
    ],
)
def test_signatures_show_the_keywords_of_their_option_types(options: type, call: Callable[..., object]):
    """help() and IPython read the signature; type checkers read the TypedDict."""
    shown = inspect.signature(call).parameters.values()
    keywords = {p.name: p.default for p in shown if p.kind is p.KEYWORD_ONLY}
    own = set(options.__annotations__) - set(freehold.SamplingParams.__dataclass_fields__)
    assert own == set(keywords)
    assert all(keywords[name] == value for name, value in DEFAULTS.items() if name in own)


def test_an_unknown_keyword_of_load_is_refused_with_the_nearest():
    unknown: Any = {"contxt": 3}
    with pytest.raises(UsageError, match="unknown option 'contxt'") as e:
        load("x", **unknown)
    assert e.value.hint == "did you mean context?"
