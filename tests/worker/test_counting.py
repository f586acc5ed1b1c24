"""Calls that only count tokens: their size, their end with their caller, and what they keep waiting."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from freehold.base.errors import ContextOverflow, Overloaded, UsageError
from freehold.base.serving import EmbedJob, Job
from freehold.base.stopping import check_stopped
from freehold.base.types import Format, Message
from freehold.run.local import opening as served_model
from freehold.serve.worker import stream as calls
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import EngineModels
from freehold.serve.worker.process.intake import LONG_JOB, MANY_ANSWERS, Intake, LiveJobs
from freehold.serve.worker.process.scripted import ScriptedModel
from freehold.serve.worker.wire import Cancel, ModelCall, Script, Submit, Writer, size
from tests.worker.conftest import answers

OPTIONS = EngineOptions(threads=1, cache_bytes=8 << 20)
CHAT = Job(messages=(Message("user", "Hi"),), max_tokens=2)
LONG = "x" * (LONG_JOB + 1)


class Counting(ScriptedModel):
    """A script whose token counts take until they are stopped, and say that they were."""

    def __init__(self) -> None:
        super().__init__(Script())
        self.begun, self.stopped = queue.SimpleQueue[str](), queue.SimpleQueue[str]()

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        if not text.startswith("x"):
            return super().tokenize(text)
        self.begun.put(text)
        try:
            while True:
                check_stopped()
                time.sleep(0.001)
        finally:
            self.stopped.put(text)

    def embed_job(self, job: EmbedJob):
        self.tokenize(cast(str, job.texts[0]))
        return super().embed_job(job)


def engine() -> tuple[Counting, Intake, queue.SimpleQueue[Any]]:
    replied = queue.SimpleQueue[Any]()
    channel = cast(Any, SimpleNamespace(send_events=lambda events, stats: replied.put(events[0])))
    model = Counting()
    return model, Intake(model, LiveJobs(model, channel), channel), replied


def submitted(id: int, job: Job) -> Submit:
    return Submit(id, Writer().raw(job))


@pytest.mark.parametrize(
    "job", [replace(CHAT, format=Format("json")), Job(prompt=LONG)], ids=["format", "long"]
)
def test_counting_keeps_no_format_and_no_long_prompt_waiting(job: Job):
    _model, intake, replied = engine()
    intake.take([ModelCall(i, "tokenize", ["x" if i % 2 else LONG]) for i in range(24)])
    intake.take([submitted(99, replace(job, prompt="y" * len(job.prompt or "")) if job.prompt else job)])
    assert replied.get(timeout=60).id == 99
    intake.take([Cancel(i) for i in range(24)])


def test_long_texts_keep_no_short_one_waiting():
    _model, intake, replied = engine()
    intake.take(
        [
            ModelCall(1, "tokenize", [LONG]),
            ModelCall(2, "tokenize", [LONG]),
            ModelCall(3, "tokenize", ["a b"]),
        ]
    )
    assert replied.get(timeout=60).id == 3
    intake.take([Cancel(1), Cancel(2)])


@pytest.mark.parametrize("text", ["", LONG])
def test_client_that_counts_waits_for_no_count_of_another(text: str):
    model, intake, _replied = engine()
    intake.take([ModelCall(i, "tokenize", [f"xa{text}"], "a") for i in range(24)])
    assert model.begun.get(timeout=60).startswith("xa")
    intake.take([ModelCall(99, "tokenize", [f"xb{text}"], "b")])
    assert model.begun.get(timeout=60).startswith("xb")
    intake.take([Cancel(i) for i in [*range(24), 99]])


def test_cancelled_counts_leave_their_queue_or_stop():
    model, intake, replied = engine()
    intake.take([ModelCall(i, "tokenize", [f"x{i}"]) for i in range(24)])
    assert model.begun.get(timeout=60) == "x0"
    intake.take([Cancel(i) for i in range(23)])
    assert model.stopped.get(timeout=60) == "x0"
    assert model.begun.get(timeout=60) == "x23"  # those between were never begun
    intake.take([Cancel(23), ModelCall(24, "tokenize", ["a"])])
    assert replied.get(timeout=60).id == 24 and replied.empty()


def test_cancelled_embeddings_stop():
    model, intake, _replied = engine()
    intake.take([ModelCall(1, "embed", [asdict(EmbedJob(("x",)))])])
    assert model.begun.get(timeout=60) == "x"
    intake.take([Cancel(1)])
    assert model.stopped.get(timeout=60) == "x"


def test_job_of_many_answers_is_prepared_beside_the_reader():
    threads = queue.SimpleQueue[threading.Thread]()

    class Noting(Counting):
        def start(self, job: Job):
            threads.put(threading.current_thread())
            return super().start(job)

    model = Noting()
    channel = cast(Any, SimpleNamespace(send_events=lambda events, stats: None))
    intake = Intake(model, LiveJobs(model, channel), channel)
    intake.take([submitted(1, replace(CHAT, n=MANY_ANSWERS))])
    assert threads.get(timeout=60) is threading.current_thread()
    intake.take([submitted(2, replace(CHAT, n=MANY_ANSWERS + 1))])
    assert threads.get(timeout=60) is not threading.current_thread()


def test_cancelled_long_prompt_stops():
    class Reading(Counting):
        def start(self, job: Job):
            self.tokenize(cast(str, job.prompt))
            return super().start(job)

    model = Reading()
    channel = cast(Any, SimpleNamespace(send_events=lambda events, stats: None))
    intake = Intake(model, LiveJobs(model, channel), channel)
    intake.take([submitted(1, Job(prompt=LONG))])
    assert model.begun.get(timeout=60) == LONG
    intake.take([Cancel(1)])
    assert model.stopped.get(timeout=60) == LONG


# The engine's limits.


def test_text_no_context_holds_is_refused_before_it_is_tokenized(serve, tiny, monkeypatch):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        context = served.info.context
        words = "ab " * context * 22  # 66 characters for each token, more than any token of this vocabulary
        calls = [
            served.tokenizer.tokenize(words),
            served.tokenizer.render((Message("user", words),)),
            served.count(replace(CHAT, messages=(Message("user", words),))),
        ]
        for call in calls:
            with pytest.raises(ContextOverflow, match=f"has [0-9,]+ characters; the context of {context:,}"):
                await call
        with pytest.raises(ContextOverflow, match=f"; the context holds {context:,}"):
            await served.tokenizer.detokenize([1] * (context + 1))
        assert (
            len(await served.tokenizer.tokenize("ab " * context)) > context
        )  # counting goes beyond the context

    serve(body, OPTIONS, paths=tiny)


def test_no_reply_lists_more_ids_than_the_server_can_write_at_once(monkeypatch):
    monkeypatch.setattr(served_model, "MAX_LISTED", 3)
    with pytest.raises(UsageError, match="has 4 tokens; the limit is 3"):
        served_model._listable([1, 2, 3, 4])


# The server's side.


def test_callers_that_leave_take_their_calls_along(serve, monkeypatch):
    async def body(models: EngineModels) -> None:
        served = await models.use("script")
        sent: list[object] = []
        engine = served._engine
        monkeypatch.setattr(engine, "send", lambda message, most=0: sent.append(message))
        tasks = [asyncio.create_task(served.tokenizer.tokenize("x")) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        asked = [m.id for m in sent if isinstance(m, ModelCall)]
        assert [m.id for m in sent if isinstance(m, Cancel)] == asked and len(asked) == 3
        assert served.idle

    serve(body, scripts={"script": Script()})


@pytest.mark.parametrize("limit", ["calls", "characters"])
def test_more_than_may_wait_is_refused_with_a_time(serve, monkeypatch, limit):
    most = {"calls": 2, "characters": 64}[limit]
    monkeypatch.setitem(calls.MOST_CALLS, "tokens", most)
    monkeypatch.setattr(calls, "MOST_CALLS_SIZE", 2_000_000 if limit == "characters" else 1 << 30)

    async def body(models: EngineModels) -> None:
        model = await models.use("script")
        monkeypatch.setattr(model._engine, "send", lambda message, most=0: None)
        waiting: list[asyncio.Task[Any]] = []
        waiting += [asyncio.create_task(model.tokenizer.tokenize("x" * 1_000_000)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 requests with 2,000,000 characters wait to count") as refused:
            await model.tokenizer.tokenize("x")
        assert refused.value.wait_s == 2.0
        texts = asyncio.create_task(model.tokenizer.token_texts([1]))  # of an answer that is under way
        await asyncio.sleep(0)
        assert not texts.done()
        waiting.append(texts)
        assert model.in_flight == 0
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    serve(body, scripts={"script": Script()})


def test_tokens_of_texts_are_told_as_they_are_computed(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        told: list[int] = []
        job = EmbedJob(tuple(["the cat"] * (calls.PORTION_TEXTS + 1)))
        got = await served.embed(job, computed=told.append)
        assert len(told) == 2 and sum(told) == sum(got.tokens)
        assert await answers(served, CHAT)

    serve(body, OPTIONS, paths=tiny)


@pytest.mark.parametrize(
    "args, want",
    [
        (["abc", True], 3),
        ([[1, 2, 3]], 3),
        ([[("user", "abc", "de")], None, "new"], 12),
        ([replace(CHAT, stop=("ab",))], size(CHAT) + 3),  # as on the wire: its length comes with a text
        ([asdict(EmbedJob(("ab", (1, 2, 3))))], size(asdict(EmbedJob(()))) + 5),
    ],
)
def test_size_of_a_call_is_what_it_holds(args: Sequence[Any], want: int):
    assert size(args) == want
    assert msgspec.msgpack.encode(args)
