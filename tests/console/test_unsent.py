"""What is written and not sent, or sent and not heard of, is in the box or in the chat, once, whatever fails between.

Path: a real server; requests fail on their way in the browser
"""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import expect

from freehold.serve.chats.folder import ChatFolder
from tests.console.conftest import Served

RUNS = "**/console/api/chats/*/runs"


@pytest.fixture
def chat(standing: Served, page: Any) -> Any:
    """The page with a chat that has one answer. What a test lets fail does not count as an error of the page."""
    page.goto(standing.url)
    say(page, "hello first")
    heard(page, 1)
    yield page
    page.errors.clear()


def box(page: Any) -> Any:
    return page.get_by_role("textbox", name="Message", exact=True)


def say(page: Any, text: str) -> None:
    box(page).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def heard(page: Any, count: int) -> None:
    page.locator(f"article:not(.user):not([aria-busy]) >> nth={count - 1}").wait_for()


def written(server: Served, page: Any) -> list[str]:
    """What the user said in the chat that is open, as its file has it."""
    saved = ChatFolder.of(server.home).read(page.url.rpartition("/")[2].split("?")[0])
    return [message.content for message in saved.messages.values() if message.role == "user"]


@pytest.mark.heavy
def test_message_that_never_left_is_in_the_box_once_after_a_reload(chat, standing):
    chat.route(RUNS, lambda route: route.abort())
    say(chat, "hello twice?")
    chat.get_by_text("This message is sent when it is back").first.wait_for()
    chat.reload()
    expect(box(chat)).to_have_value("hello twice?")
    box(chat).fill("hello, changed")
    chat.reload()
    expect(box(chat)).to_have_value("hello, changed")
    chat.unroute(RUNS)
    chat.get_by_role("button", name="Send", exact=True).click()
    heard(chat, 2)
    assert written(standing, chat) == ["hello first", "hello, changed"]


def test_message_of_a_new_chat_that_never_left_goes_with_its_chat(standing, page):
    page.route(RUNS, lambda route: route.abort())
    page.goto(standing.url)
    say(page, "hello new")
    page.get_by_text("This message is sent when it is back").first.wait_for()
    page.reload()
    expect(box(page)).to_have_value("hello new")
    page.goto(standing.url)
    expect(box(page)).to_have_value("")
    page.errors.clear()


def test_message_whose_answer_was_not_heard_is_sent_once_and_leaves_no_draft(chat, standing):
    def unheard(route: Any) -> None:
        route.fetch()
        route.abort()

    chat.route(RUNS, unheard, times=1)
    say(chat, "hello unheard")
    heard(chat, 2)
    chat.reload()
    heard(chat, 2)
    expect(box(chat)).to_have_value("")
    assert written(standing, chat) == ["hello first", "hello unheard"]


@pytest.mark.parametrize("reload", [False, True])
def test_new_chat_whose_beginning_was_not_heard_is_begun_once(standing, page, reload):
    """Also where the page is loaded again before the server is back."""
    away = []

    def unheard(route: Any) -> None:
        if not away:
            route.fetch()
        away.append(route.request.url)
        route.abort()

    before = {card.id for card in ChatFolder.of(standing.home).cards()}
    page.route("**/console/api/chats", unheard)  # not the list, which has a query
    page.goto(standing.url)
    say(page, "hello begun")
    page.get_by_text("This message is sent when it is back").first.wait_for()
    if reload:
        page.reload()
        expect(box(page)).to_have_value("hello begun")
    page.unroute("**/console/api/chats")
    if reload:
        page.get_by_role("button", name="Send", exact=True).click()
    heard(page, 1)
    made = [card for card in ChatFolder.of(standing.home).cards() if card.id not in before]
    assert [card.messages for card in made] == [2] and written(standing, page) == ["hello begun"]
    page.errors.clear()


@pytest.mark.heavy
def test_refused_message_comes_back_before_what_was_typed_meanwhile(chat):
    held = []

    def wait(route: Any) -> None:
        held.append(route)

    chat.route(RUNS, wait)
    say(chat, "hello refused")
    box(chat).fill("typed meanwhile")
    chat.wait_for_timeout(100)
    [refused] = held
    refused.fulfill(status=429, json={"error": {"message": "too many answers are being made"}})
    expect(box(chat)).to_have_value("hello refused\n\ntyped meanwhile")
    chat.reload()
    expect(box(chat)).to_have_value("hello refused\n\ntyped meanwhile")


def test_draft_is_in_the_box_again_after_an_edit_was_sent(chat, standing):
    box(chat).fill("a draft")
    chat.get_by_role("button", name="Edit", exact=True).click()
    expect(box(chat)).to_have_value("hello first")
    say(chat, "hello edited")
    chat.get_by_text("2/2").wait_for()
    expect(box(chat)).to_have_value("a draft")
    chat.reload()
    expect(box(chat)).to_have_value("a draft")
    assert written(standing, chat) == ["hello first", "hello edited"]


def test_model_that_cannot_be_kept_for_the_chat_is_said(chat):
    def fail(route: Any) -> None:
        route.abort() if route.request.method == "PATCH" else route.continue_()

    chat.route("**/console/api/chats/*", fail)
    chat.get_by_role("button", name=re.compile("^Model: ")).click()
    chat.get_by_role("option").first.click()
    chat.get_by_text("the server cannot be reached").first.wait_for()
    assert all("Failed to load" in said for said in chat.errors), chat.errors


def test_model_that_an_address_names_is_the_one_asked(standing, page):
    page.goto(f"{standing.url}/#/chat?model=other%3A1b")
    page.get_by_role("button", name="Model: other:1b", exact=True).wait_for()
