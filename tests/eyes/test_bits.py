"""What a picture does to an answer is the same bits, however the picture came to be computed.

Alone, beside 31 others, cut into sections, from memory, from the disk, after preemption, in an engine that takes over
from one that was killed: tokens and their log-probabilities are those of the first time.
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Drawing

from freehold.base.serving import Job
from freehold.base.types import Chunk, Image, Message, TokenLogprob
from freehold.run.engine.schedule import scheduler
from freehold.run.local import encoding, open_served
from freehold.run.local.answering import LocalJob
from freehold.run.local.opening import ServedModel
from freehold.run.models import seeing
from freehold.run.models.tiny import make
from freehold.run.store import ModelRef
from freehold.serve.worker.client import EngineOptions
from tests.worker import conftest as worker

pytestmark = pytest.mark.heavy
CONTEXT, TOKENS, BLOCK = 512, 24, 32
NAMES = ["qwen3_vl", "gemma3-eyes"]  # three positions and deep layers; rows that see each other
FOLDERS = itertools.count()
Answer = list[tuple[int, TokenLogprob]]
serve = worker.serve  # a fixture


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRef]:
    made: dict[str, ModelRef] = {}
    for name in NAMES:
        folder = make.write_safetensors(make.config(name), tmp_path_factory.mktemp(name) / "tiny")
        path = folder / "preprocessor_config.json"
        if name == "qwen3_vl":  # the tiny one's own limit is 16 tokens
            size = {"shortest_edge": 1024, "longest_edge": 300_000}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size}))
        files = tuple(sorted(folder.iterdir()))
        made[name] = ModelRef(name, folder, "safetensors", "d" * 64, 1, "user", "", "", files)
    return made


def picture(number: int) -> Image:
    """One of many small pictures; every third is larger."""
    side = 320 if number % 3 == 0 else 96
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Drawing.fromarray(pixels).save(file, "PNG")
    return Image.of(file.getvalue())


def job(*numbers: int, seed: int = 3, client: str = "") -> Job:
    parts = [part for number in numbers for part in (f"no {number} ", picture(number))]
    sampling = {"temperature": 0.8, "seed": seed}
    chat = (Message("user", parts=(*parts, "what?")),)
    return Job(
        messages=chat, max_tokens=TOKENS, sampling=sampling, logprobs=2, client=client, ignore_eos=True
    )


def opened(ref: ModelRef, **options: Any) -> ServedModel:
    return open_served(ref, context=CONTEXT, threads=1, **options)


def pieces(chunks: list[Chunk]) -> Answer:
    return [
        (id, score) for chunk in chunks for id, score in zip(chunk.token_ids, chunk.logprobs, strict=True)
    ]


def answered(llm: ServedModel, *jobs: Job) -> list[Answer]:
    """Answer jobs together."""
    running: list[LocalJob] = [llm.start(each) for each in jobs]
    chunks: list[list[Chunk]] = [[] for _ in jobs]
    for each in running:
        each.enter()
    while not all(each.done for each in running):
        llm.pump(0.05)
        for each, held in zip(running, chunks, strict=True):
            held += [chunk for _, chunk in each.take()]
    return [pieces(held) for held in chunks]


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_however_a_picture_is_computed_the_answer_has_the_same_bits(
    refs: dict[str, ModelRef], name: str, data: st.DataObject, tmp_path: Path
):
    ref, disk = refs[name], tmp_path / f"kv{next(FOLDERS)}"
    count = data.draw(st.sampled_from([1, 2]))
    mine = job(*data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    with opened(ref) as llm:
        (alone,) = answered(llm, mine)
        assert answered(llm, mine) == [alone]  # features and keys from memory
        assert llm.stats.images_encoded <= count and llm.stats.image_hits
    others = [job(10 + i, seed=i, client="ab"[i % 2]) for i in range(data.draw(st.sampled_from([0, 3, 31])))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "STALL_S", 0.0)
        patch.setattr(seeing, "HOLD", data.draw(st.sampled_from([1e-5, 0.05])))
        patch.setattr(seeing, "_FIRST", data.draw(st.sampled_from([32, 512])))
        patch.setattr(encoding, "BATCH_ROWS", data.draw(st.sampled_from([50, 1024])))
        blocks = data.draw(st.sampled_from([CONTEXT // BLOCK + 1, 200]))
        with opened(ref, blocks=blocks, disk=disk) as llm:
            at = data.draw(st.integers(0, len(others)))
            together = answered(llm, *others[:at], mine, *others[at:])
            assert together[at] == alone
    kept = data.draw(st.integers(0, TOKENS - 1))  # tokens that a killed engine had sent
    resumed = replace(mine, resume=(tuple(id for id, _ in alone[:kept]),))
    with opened(ref, disk=disk) as llm:
        assert answered(llm, resumed) == [alone[kept:]]
        assert llm.stats.images_encoded == 0 and llm.stats.image_disk_hits


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_was_preempted_goes_on_with_the_same_bits(
    refs: dict[str, ModelRef], name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scheduler, "STALL_S", 0.0)
    mine = job(0, 1)
    with opened(refs[name]) as llm:
        (alone,) = answered(llm, mine)
    with opened(refs[name], blocks=CONTEXT // BLOCK) as llm:
        first = llm.start(replace(mine, priority="batch"))
        first.enter()
        chunks: list[Chunk] = []
        while len(pieces(chunks)) < 3:
            llm.pump(0.05)
            chunks += [chunk for _, chunk in first.take()]
        text = Job(prompt=(20,) * (CONTEXT - 40), max_tokens=30, sampling={"seed": 1}, ignore_eos=True)
        assert len(answered(llm, replace(text, logprobs=0))[0]) == 30
        assert llm.stats.preemptions and llm.stats.images_encoded == 2
        while not first.done:
            llm.pump(0.05)
            chunks += [chunk for _, chunk in first.take()]
        assert pieces(chunks) == alone


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_is_killed_is_continued_with_the_same_bits(
    serve, refs: dict[str, ModelRef], name: str
):
    async def body(models) -> None:
        served = await models.use(name)
        mine = replace(job(0, 1), max_tokens=60)
        (alone,) = await worker.answers(served, mine)
        (killed,) = await worker.answers(served, mine, kill_at=[7, 23])
        assert served.restarts >= 1 and pieces(killed) == pieces(alone)  # it may be done before the second

    options = EngineOptions(threads=1, cache_bytes=8 << 20, context=CONTEXT)
    serve(body, options, paths={name: refs[name]})
