"""What is done to one message in the page: speed in sight, continue, reword, a chat from here, delete, a title."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import SavedMessage
from tests.console.conftest import Served
from tests.console.scripted import write_scripted
from tests.console.test_chat import box, more, said, say

SCRIPTS = {
    "hello": "Hello! What shall I say?",
    "long": "".join(f"Line {i} of a long answer, which has some more words.\n\n" for i in range(1500)),
    "poem": "Words of a poem, " * 80,  # do not come all at once, which would leave no speed to say
    "two to six words": "Words of greeting",
}
_MAKE = """async settings => {
    const headers = {"content-type": "application/json"};
    const body = JSON.stringify({model: "scripted", settings});
    return (await (await fetch("/console/api/chats", {method: "POST", headers, body})).json()).id;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose model writes titles too."""
    folder = tmp_path_factory.mktemp("messages")
    model = write_scripted(folder / "scripted.gguf", SCRIPTS)
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text("adopt = false\n")
    served = Served(folder / "home", (str(model),))
    served.start()
    yield served
    served.stop()


@pytest.fixture
def chat(server: Served, page: Any) -> Any:
    """The page with a new chat."""
    page.goto(server.url)
    page.get_by_role("button", name=re.compile("^Model: scripted")).wait_for()
    return page


def branch(server: Served, page: Any) -> list[SavedMessage]:
    return ChatFolder.of(server.home).read(page.url.rpartition("/")[2]).branch()


def articles(page: Any) -> Any:
    return page.locator("article.message:not([aria-busy])")


@pytest.mark.heavy
def test_speed_and_seconds_are_in_sight_under_every_answer(chat):
    say(chat, "a poem")
    said(chat)
    say(chat, "another poem")
    said(chat, 2)
    chat.mouse.move(0, 0)
    paces = chat.locator(".pace")
    expect(paces).to_have_count(2)
    for pace in paces.all():
        assert re.search(r"tok/s · [\d.]+\s(ms|s)$", pace.inner_text())
        assert pace.evaluate("e => getComputedStyle(e).opacity") == "1"


@pytest.mark.heavy
def test_an_answer_that_was_cut_off_continues_as_another_version(chat, server):
    chat.goto(f"{server.url}/#/chat/{chat.evaluate(_MAKE, {'max_tokens': 5})}")
    say(chat, "long")
    answer = chat.get_by_role("article", name="scripted")
    answer.get_by_text("Cut off").wait_for()
    cut = branch(server, chat)[-1]
    answer.get_by_role("button", name="Continue", exact=True).click()
    answer.get_by_text("2/2").wait_for()
    expect(chat.locator("article.assistant:not([aria-busy])")).to_have_count(1)
    made = branch(server, chat)[-1]
    assert made.id != cut.id and made.content.startswith(cut.content) and (made.receipt or {})["continued"]
    answer.get_by_role("button", name="Receipt").click()
    answer.get_by_text("continues another one").wait_for()


def test_an_answer_that_was_stopped_offers_to_continue(chat, server):
    say(chat, "long")
    chat.locator("article.assistant .said").wait_for()
    chat.get_by_role("button", name="Stop", exact=True).click()
    chat.get_by_text("You stopped this answer.").wait_for()
    stopped = branch(server, chat)[-1].id
    with chat.expect_request("**/runs") as request:
        chat.get_by_role("button", name="Continue", exact=True).click()
    assert request.value.post_data_json["extend"] == stopped


def test_an_answer_is_reworded_in_the_box_and_says_so(chat, server):
    say(chat, "hello")
    said(chat)
    answer = chat.get_by_role("article", name="scripted")
    answer.get_by_role("button", name="Edit").click()
    expect(box(chat)).to_have_value(SCRIPTS["hello"])
    chat.get_by_text("nothing is sent").wait_for()
    box(chat).fill("Good day.")
    chat.get_by_role("button", name="Save", exact=True).click()
    expect(answer.locator(".said")).to_have_text("Good day.")
    answer.get_by_text("edited by you").wait_for()
    expect(box(chat)).to_have_value("")
    assert [m.content for m in branch(server, chat)] == ["hello", "Good day."]
    answer.get_by_role("button", name="Previous version").click()
    expect(answer.locator(".said")).to_have_text(SCRIPTS["hello"])


def test_a_chat_from_here_has_what_came_before_and_leaves_the_other(chat, server):
    say(chat, "hello first")
    said(chat)
    say(chat, "hello second")
    said(chat, 2)
    before = chat.url
    first = chat.get_by_role("article", name="scripted").first
    first.get_by_role("button", name="More for this message").click()
    chat.get_by_role("menuitem", name="New chat from here").click()
    chat.wait_for_url(lambda url: url != before)
    expect(articles(chat)).to_have_count(2)
    assert [m.content for m in branch(server, chat)] == ["hello first", SCRIPTS["hello"]]
    chat.goto(before)
    expect(articles(chat)).to_have_count(4)


def test_a_menu_whose_message_is_gone_before_it_opens_is_no_error(chat):
    say(chat, "hello")
    said(chat)
    chat.get_by_role("button", name="Regenerate", exact=True).click()
    chat.get_by_text("2/2").wait_for()
    said(chat)
    both = """answer => {
        for (const name of ["More for this message", "Previous version"])
            answer.querySelector(`[aria-label="${name}"]`).click();
    }"""
    chat.get_by_role("article", name="scripted").evaluate(both)
    chat.get_by_text("1/2").wait_for()
    more(chat, "New chat from here")
    expect(articles(chat)).to_have_count(2)


def test_one_message_is_deleted_and_put_back(chat, server):
    say(chat, "hello first")
    said(chat)
    say(chat, "hello second")
    said(chat, 2)
    more(chat, "Delete message", article="You")
    expect(articles(chat)).to_have_count(3)
    chat.get_by_text("hello second").wait_for(state="detached")
    assert [m.role for m in branch(server, chat)] == ["user", "assistant", "assistant"]
    chat.get_by_role("button", name="Undo").click()
    expect(articles(chat)).to_have_count(4)
    assert len(branch(server, chat)) == 4


def test_the_model_gives_a_chat_its_title(chat):
    say(chat, "hello there, how are you today?")
    said(chat)
    chat.get_by_role("heading", name="Words of greeting", level=1).wait_for()
    chat.get_by_role("navigation", name="Chats").get_by_role(
        "link", name="Words of greeting"
    ).first.wait_for()
