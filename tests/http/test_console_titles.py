"""Titles of chats: said by the model that answered, on idle capacity, unless the user has named the chat."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from freehold.serve.chats.types import ChatChange
from freehold.serve.http.console.runs.chatrun import MOST_CHARS, cleaned
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_console_runs import Chats, eventually


@pytest.fixture
def chats(serving: Callable[..., Running]) -> Callable[..., Chats]:
    return lambda script=None, **settings: Chats(serving(script, titles=True, **settings))


def answered(mine: Chats, text: str = "What is the capital of France, and why?") -> None:
    mine.follow(mine.run(text)["run"])


def test_a_chat_gets_a_title_of_its_model_as_work_that_waits_for_all_other(chats):
    mine = chats(Script(text="Capital of France"))
    answered(mine)
    assert eventually(lambda: mine.folder.read(mine.id).card.named)
    assert mine.folder.read(mine.id).card.title == "Capital of France"
    job = mine.server.models.served["fake:1b"].jobs[-1]
    assert job.priority == "batch" and "User: What is the capital" in job.messages[0].content
    assert len(mine.folder.read(mine.id).messages) == 2, "the title's question is no message of the chat"


def test_a_chat_that_its_user_has_named_is_asked_about_no_more(chats):
    mine = chats(Script(text="Capital of France"))
    with mine.folder.writer(mine.id) as writer:
        writer.set(ChatChange(title="My own"))
    answered(mine)
    answered(mine)
    assert mine.folder.read(mine.id).card.title == "My own"
    assert len(mine.server.models.served["fake:1b"].jobs) == 2


def test_a_model_that_says_a_sentence_for_a_title_leaves_the_first_line(chats):
    mine = chats(Script(text="This chat is about the capital of France and about why it is so."))
    answered(mine)
    handle = mine.server.models.served["fake:1b"]
    assert eventually(lambda: len(handle.jobs) == 2 and not mine.server.doors.server.calls)
    card = mine.folder.read(mine.id).card
    assert not card.named and card.title == "What is the capital of France, and why?"


def test_without_titles_nothing_is_asked_besides_the_chat(serving, tmp_path):
    mine = Chats(serving(Script(text="short"), home=tmp_path))
    answered(mine)
    answered(mine)
    assert len(mine.server.models.served["fake:1b"].jobs) == 2


@pytest.mark.parametrize(
    "said, title",
    [
        ('"Capital of France."\nIt is Paris.', "Capital of France"),
        ("Title: **Paris**", "Paris"),
        ("", ""),
        ("...", ""),
        ("x" * (MOST_CHARS + 1), ""),
        ("one two three four five six seven eight nine", ""),
    ],
)
def test_a_title_is_a_few_words(said, title):
    assert cleaned(said) == title
