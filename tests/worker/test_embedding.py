"""Embeddings from an engine process: the vectors of this one, in portions, beside answers, and after a death."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import freehold
from freehold.base.errors import ContextOverflow, UnsupportedModel, UsageError
from freehold.base.serving import EmbedJob, Job, Vectors
from freehold.base.types import Message
from freehold.run.store import ModelRef
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import EngineModels
from freehold.serve.worker.process.intake import EMBEDDING, Intake, LiveJobs
from freehold.serve.worker.process.scripted import ScriptedModel
from freehold.serve.worker.stream import PORTION_TEXTS
from freehold.serve.worker.wire import ModelCall, Script
from tests.vectors.encoders import write_encoder
from tests.worker.conftest import answers, tokens

OPTIONS = EngineOptions(threads=1, cache_bytes=8 << 20)
TEXTS = [f"the cat {i}" * (1 + i % 4) for i in range(2 * PORTION_TEXTS + 5)]
JOB = EmbedJob(tuple(TEXTS))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRef]:
    path = write_encoder("bert", tmp_path_factory.mktemp("encoder") / "tiny-bert")
    files = tuple(p for p in Path(path).rglob("*") if p.is_file())
    size = sum(p.stat().st_size for p in files)
    return {"bert": ModelRef("bert", path, "safetensors", "", size, "user", "", "", files)}


def rows(got: Vectors) -> np.ndarray:
    return np.frombuffer(got.data, "<f4").reshape(-1, got.width)


def test_vectors_are_those_of_this_process(serve, encoder):
    async def body(models: EngineModels) -> None:
        served = await models.use("bert")
        assert served.info.embeds_only and served.info.width == 128
        got = await served.embed(JOB)
        with freehold.load(encoder["bert"].path, threads=1) as llm:
            want = llm.embed(TEXTS)
        assert got.data == want.vectors.tobytes() and got.tokens == want.tokens
        while served.stats.prompt_tokens != sum(
            got.tokens
        ):  # reported a moment later; the test's limit ends it
            await asyncio.sleep(0.01)
        few = await served.embed(EmbedJob(("the cat",), "cls", dimensions=4))
        assert few.width == 4

    serve(body, OPTIONS, paths=encoder)


def test_damaged_pack_of_an_encoder_costs_a_load_and_no_vector_a_bit(serve, encoder, tmp_path: Path, caplog):
    async def body(models: EngineModels) -> None:
        served = await models.use("bert")
        want = await served.embed(JOB)
        await served.unload()
        (pack,) = (tmp_path / "packs").iterdir()
        whole = pack.read_bytes()
        pack.write_bytes(whole[:-60_000] + bytes(30_000) + whole[-30_000:])
        got = await (await models.use("bert")).embed(JOB)
        assert got.data == want.data and served.restarts == 1 and pack.name in caplog.text

    serve(body, OPTIONS, paths={"bert": replace(encoder["bert"], digest="ab" * 32)})


def test_errors_and_what_was_cut_name_the_text(serve, encoder):
    async def body(models: EngineModels) -> None:
        served = await models.use("bert")
        long = EmbedJob((*["the"] * PORTION_TEXTS, "the " * 70))
        assert (await served.embed(replace(long, truncate=True))).cut == (PORTION_TEXTS,)
        with pytest.raises(ContextOverflow, match=f"text {PORTION_TEXTS} has 72 tokens"):
            await served.embed(long)
        with pytest.raises(UsageError, match="dimensions"):
            await served.embed(EmbedJob(("a",), dimensions=1000))
        with pytest.raises(UnsupportedModel, match="cannot chat: it makes embeddings"):
            await served.start(Job(messages=(Message("user", "Hi"),)))

    serve(body, OPTIONS, paths=encoder)


def test_a_decoder_embeds_beside_its_answers(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        chat = Job(messages=(Message("user", "Hi"),), max_tokens=40, sampling={"seed": 1})
        got, [alone] = await asyncio.gather(served.embed(EmbedJob(("a b c", "d"))), answers(served, chat))
        with freehold.load(tiny["tiny"].path, threads=1, context=256) as llm:
            assert rows(got).tobytes() == llm.embed(["a b c", "d"]).vectors.tobytes()
            assert tuple(tokens(alone)) == llm.chat("Hi", max_tokens=40, seed=1).token_ids

    serve(body, EngineOptions(threads=1, context=256, cache_bytes=8 << 20), paths=tiny)


def test_a_request_outlives_its_engine(serve, encoder):
    async def body(models: EngineModels) -> None:
        served = await models.use("bert")
        want = await served.embed(JOB)
        asking = asyncio.create_task(served.embed(JOB))
        await asyncio.sleep(0)
        os.kill(served.pid, signal.SIGKILL)
        assert (await asking).data == want.data

    serve(body, OPTIONS, paths=encoder)


def test_batches_that_wait_for_their_steps_hold_up_no_interactive_request():
    over, replied = threading.Event(), queue.SimpleQueue[int]()

    class Waiting(ScriptedModel):
        def embed_job(self, job: EmbedJob):
            assert job.priority == "interactive" or over.wait(60)
            return super().embed_job(job)

    channel = cast(Any, SimpleNamespace(send_events=lambda events, stats: replied.put(events[0].id)))
    model = Waiting(Script())
    intake = Intake(model, LiveJobs(model, channel), channel)
    batch, urgent = asdict(EmbedJob(("a",), priority="batch")), asdict(EmbedJob(("a",)))
    intake.take(
        [*(ModelCall(i, "embed", [batch]) for i in range(2 * EMBEDDING)), ModelCall(99, "embed", [urgent])]
    )
    assert replied.get(timeout=60) == 99
    over.set()
    assert {replied.get(timeout=60) for _ in range(2 * EMBEDDING)} == set(range(2 * EMBEDDING))


def test_a_script_embeds_too(serve):
    async def body(models: EngineModels) -> None:
        got = await (await models.use("script")).embed(EmbedJob(("a", "b c", "a")))
        vectors = rows(got)
        assert got.tokens == (1, 2, 1) and vectors[0].tobytes() == vectors[2].tobytes()

    serve(body, scripts={"script": Script()})
