"""Many jobs in shared steps: each answer and each score is the one that it has alone."""

from __future__ import annotations

import numpy as np
import pytest

import freehold
from freehold import LLM, Message
from freehold.base.errors import ContextOverflow
from freehold.base.serving import Job
from freehold.base.types import Completion
from tests.vectors.files import write_gguf

JOBS = [
    Job(messages=(Message("user", f"Hi {n}"),), max_tokens=4 + 3 * (n % 4), sampling={"seed": n})
    for n in range(9)
]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory):
    path = write_gguf("qwen2", tmp_path_factory.mktemp("together") / "tiny.gguf", dtype="Q8_0")
    with freehold.load(path, context=256, threads=1) as loaded:
        yield loaded


def texts(llm: LLM, jobs: list[Job], at_once: int) -> dict[int, tuple[int, ...]]:
    found = {}
    for number, answer in llm.answer_many(jobs, at_once=at_once):
        assert isinstance(answer, Completion)
        found[number] = answer.token_ids
    return found


def test_answers_do_not_depend_on_how_many_run_at_once(llm: LLM):
    alone = texts(llm, JOBS, 1)
    assert sorted(alone) == list(range(len(JOBS))) and len(set(alone.values())) > 1
    assert texts(llm, JOBS, 3) == texts(llm, JOBS, 64) == alone


def test_job_that_is_too_long_yields_its_error_and_the_others_continue(llm: LLM):
    long = Job(messages=(Message("user", "word " * 400),), max_tokens=4)
    found = dict(llm.answer_many([JOBS[0], long, JOBS[1]], at_once=2))
    assert isinstance(found[1], ContextOverflow)
    assert isinstance(found[0], Completion) and isinstance(found[2], Completion)


def test_closing_the_iterator_ends_the_jobs_that_run(llm: LLM):
    stream = llm.answer_many(JOBS, at_once=4)
    next(stream)
    stream.close()
    assert llm.stats.running == 0


def test_scores_of_a_batch_are_those_of_each_text(llm: LLM):
    rows = [
        llm.tokenize(text) for text in ("the end of it", "a", "some longer text than the others, to be sure")
    ]
    for together, row in zip(llm.score_many(rows), rows, strict=True):
        np.testing.assert_array_equal(together, llm.score(row))
        assert len(together) == len(row) - 1


def test_prompt_ids_are_those_that_the_answer_begins_from(llm: LLM):
    assert llm.prompt_ids(JOBS[0]) == tuple(llm.render(JOBS[0].messages or ()))
    assert llm.prompt_ids(Job(prompt="abc")) == tuple(llm.tokenize("abc"))
