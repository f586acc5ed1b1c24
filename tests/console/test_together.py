"""Two pages and a terminal in one chat: they write in turns and at once; nothing is lost, none is twice, all see all.

The pages are of two browsers, as two people of a household have them: nothing but the server is between them.
Path: `freehold serve` -> two pages; `freehold run --continue` of the same home -> the chat's file
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import SCRIPTS, Served
from tests.console.talking import Talker

ANSWER = SCRIPTS["hello"]
SEEN_MS = 4000  # 2,000 are asked for; a machine of two busy cores takes its time


class Household:
    """Two pages and a terminal that have one chat open."""

    def __init__(self, server: Served, pages: list[Any]) -> None:
        self.server, self.pages, self.said = server, pages, list[str]()
        self.talker = Talker(server.url)
        self.model = self.talker.http.get("/v1/models").json()["data"][0]["id"]
        self.chat = self.talker.chat(self.model)
        for page in pages:
            page.goto(f"{server.url}/#/chat/{self.chat}")
            page.get_by_role("textbox", name="Message", exact=True).wait_for()

    def write(self, page: Any, words: str) -> None:
        """Send a message by a page, without waiting for what comes."""
        self.said.append(words)
        page.get_by_role("textbox", name="Message", exact=True).fill(words)
        page.get_by_role("button", name="Send", exact=True).click()

    def terminal(self, words: str) -> subprocess.Popen[str]:
        """Send a message by `freehold run --continue`."""
        self.said.append(words)
        code = "from freehold.cli.main import main; main()"
        command = [sys.executable, "-c", code, "run", self.model, words, "--continue", "--plain"]
        env = {**os.environ, "FREEHOLD_HOME": str(self.server.home)}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def messages(self) -> list[dict[str, Any]]:
        """Return what the chat has, as a program reads it."""
        tree = self.talker.json("GET", f"chats/{self.chat}")["tree"]
        ids = ",".join(id for id, *_ in tree)
        return self.talker.json("GET", f"chats/{self.chat}/messages?ids={ids}")["messages"]

    def nothing_is_lost(self) -> None:
        """Check that every message is in the chat once, and has one whole answer."""
        found = self.messages()
        assert Counter(m["content"] for m in found if m["role"] == "user") == Counter(self.said)
        answers = [m for m in found if m["role"] == "assistant"]
        assert [(m["content"], m["state"]) for m in answers] == [(ANSWER, "whole")] * len(self.said)
        assert Counter(m["parent"] for m in answers) == Counter(m["id"] for m in found if m["role"] == "user")

    def seen(self, page: Any, words: str) -> None:
        """Wait until a page shows a message and its answer, each once."""
        log = page.get_by_role("log")
        log.get_by_text(words, exact=True).wait_for(timeout=SEEN_MS)
        whole = "(n) => document.querySelectorAll('article:not(.user):not([aria-busy])').length >= n"
        page.wait_for_function(whole, arg=len(self.said), timeout=SEEN_MS)
        assert log.get_by_text(words, exact=True).count() == 1


@pytest.fixture
def household(
    serving: Callable[..., Served], scripted: Path, chromium: Any, page: Any
) -> Iterator[Household]:
    context = chromium.new_context(viewport={"width": 1200, "height": 2400})
    page.set_viewport_size({"width": 1200, "height": 2400})  # all of the chat is drawn
    made = Household(serving(str(scripted)), [page, context.new_page()])
    yield made
    made.talker.http.close()
    context.close()


@pytest.mark.heavy
@pytest.mark.long
def test_two_pages_and_a_terminal_write_to_one_chat_in_turns(household):
    one, two = household.pages
    for turn in range(3):
        for who, page in (("one", one), ("two", two)):
            household.write(page, f"hello {turn} by {who}")
            page.get_by_role("log").get_by_text(f"hello {turn} by {who}", exact=True).wait_for()
            wait_for_answers(household)
            for each in household.pages:
                household.seen(each, f"hello {turn} by {who}")
        words = f"hello {turn} by the terminal"
        running = household.terminal(words)
        out, _ = running.communicate(timeout=120)
        assert running.returncode == 0 and ANSWER in out, out
        for each in household.pages:
            household.seen(each, words)
        household.nothing_is_lost()
    parents = {m["id"]: m["parent"] for m in household.messages()}
    assert len(set(parents.values())) == len(parents)  # one branch: each went on from the one before


@pytest.mark.heavy
@pytest.mark.long
def test_what_two_pages_and_a_terminal_write_at_once_is_all_kept(household):
    one, two = household.pages
    household.write(one, "hello to begin with")
    wait_for_answers(household)
    for each in household.pages:
        household.seen(each, "hello to begin with")
    running = household.terminal("hello at once by the terminal")
    household.write(one, "hello at once by one")
    household.write(two, "hello at once by two")
    assert running.communicate(timeout=120) and running.returncode == 0
    wait_for_answers(household)
    household.nothing_is_lost()
    leaf = household.talker.json("GET", f"chats/{household.chat}")["leaf"]
    (newest,) = [m for m in household.messages() if m["id"] == leaf]
    assert newest["content"] == ANSWER
    for each in household.pages:
        each.reload()
        each.get_by_role("log").get_by_text("hello to begin with", exact=True).wait_for()


def wait_for_answers(household: Household) -> None:
    """Wait until every message that was sent has its answer in the chat."""
    for _ in range(1200):
        states = [m["state"] for m in household.messages() if m["role"] == "assistant"]
        if len(states) == len(household.said) and set(states) == {"whole"}:
            return
        household.pages[0].wait_for_timeout(50)
    raise AssertionError(states)
