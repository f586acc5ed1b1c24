"""A classifier sets its label unless its model plainly says no: every other answer, and no answer, closes."""

from __future__ import annotations

import asyncio

import pytest

from freehold.base.errors import EngineLost
from freehold.base.types import Chunk, FinishReason
from freehold.route.router.gateway import Label
from freehold.route.router.labels import MOST_PORTIONS, PORTION, Classifier

LABEL = Label("private", classifier="small")


class Answering:
    """Starts streams of a fixed answer and keeps the texts."""

    def __init__(self, answer: str = "no", finish: FinishReason | None = "stop", wait: float = 0.0) -> None:
        self.answer, self.finish, self.wait = answer, finish, wait
        self.texts: list[str] = []

    async def __call__(self, model: str, job):
        assert model == "small"
        self.texts.append(job.messages[-1].content)
        return self

    def __aiter__(self):
        return self._chunks()

    async def _chunks(self):
        await asyncio.sleep(self.wait)
        yield 0, Chunk(self.answer[:1])
        yield 0, Chunk(self.answer[1:], finish_reason=self.finish)

    async def aclose(self) -> None:
        pass


def says(answering, *texts: str, wait_s: float = 5.0) -> bool:
    return asyncio.run(Classifier(answering, wait_s).says(LABEL, texts))


def test_only_a_plain_no_leaves_the_label_off():
    assert not says(Answering("no"), "a recipe")
    assert not says(Answering(" No\n"), "a recipe")


@pytest.mark.parametrize("answer", ["yes", "", "no, but", "nothing", "I cannot say"])
def test_every_other_answer_sets_it(answer: str):
    assert says(Answering(answer), "a recipe")


UNENDED: list[FinishReason | None] = ["length", "cancelled", "content_filter", None]


@pytest.mark.parametrize("finish", UNENDED)
def test_an_answer_that_did_not_end_sets_it(finish: FinishReason | None):
    assert says(Answering("no", finish), "a recipe")


def test_a_model_that_is_slow_sets_it():
    assert says(Answering(wait=10), "a recipe", wait_s=0.01)


@pytest.mark.parametrize("error", [EngineLost("gone"), OSError("no route"), TimeoutError()])
def test_a_model_that_fails_sets_it(error: Exception):
    async def ask(model: str, job):
        raise error

    assert says(ask, "a recipe")


def test_a_long_text_is_read_to_its_end():
    answering = Answering()
    text = "".join(f"{i:07d} " for i in range(2 * PORTION // 8))
    assert not says(answering, text, "the end")
    for word in [*text.split(), "the end"]:
        assert any(word in portion for portion in answering.texts)


def test_a_text_too_long_to_be_read_sets_it_unread():
    answering = Answering()
    assert says(answering, "x" * PORTION * MOST_PORTIONS * 2) and answering.texts == []
