"""One message of a chat: taken out and put back, edited, continued, and the begin of a chat of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import AskedTool, ChatSettings
from freehold.serve.http.console.runs import run
from freehold.serve.http.core.computing import Computing
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_console_chats import talked
from tests.http.test_console_runs import Chats

URL = "/console/api/chats"


@pytest.fixture
def server(serving, tmp_path: Path) -> Running:
    return serving(home=tmp_path / "mine")


@pytest.fixture
def mine(tmp_path: Path) -> ChatFolder:
    return ChatFolder.of(tmp_path / "mine")


def texts(folder: ChatFolder, id: str) -> list[str]:
    return [message.content for message in folder.read(id).branch()]


def ids(folder: ChatFolder, id: str) -> list[str]:
    return [message.id for message in folder.read(id).branch()]


def test_a_message_is_taken_out_and_what_followed_it_stays(server, mine):
    chat = talked(mine, "one", "two", "three", "four")
    second = ids(mine, chat)[1]
    answer = server.client.post(f"{URL}/{chat}/take-out", json={"message": second}).json()
    assert answer["messages"] == [second] and answer["chat"]["messages"] == 3
    assert texts(mine, chat) == ["one", "three", "four"]
    assert not mine.search("two") and len(mine.search("three")) == 1
    assert server.client.post(f"{URL}/{chat}/put-back", json={"messages": [second]}).status_code == 200
    assert texts(mine, chat) == ["one", "two", "three", "four"]


def test_the_last_version_that_is_taken_out_leaves_the_one_before_it_in_its_place(server, mine):
    chat = talked(mine, "one", "first answer")
    question = ids(mine, chat)[0]
    with mine.writer(chat) as writer:
        second = writer.message("assistant", "second answer", parent=question).id
    server.client.post(f"{URL}/{chat}/take-out", json={"message": second})
    assert texts(mine, chat) == ["one", "first answer"]
    server.client.post(f"{URL}/{chat}/put-back", json={"messages": [second]})
    assert texts(mine, chat) == ["one", "second answer"]


def test_an_answer_is_taken_out_with_the_results_of_its_tools(server, mine):
    chat = talked(mine, "what is in notes?")
    with mine.writer(chat) as writer:
        asked = (AskedTool(id="c1", server="files", name="read", arguments="{}"),)
        call = writer.message("assistant", "", parent=ids(mine, chat)[0], calls=asked).id
        result = writer.message("tool", "milk", parent=call, call="c1", outcome="done").id
        writer.message("assistant", "Milk.", parent=result)
    refused = server.client.post(f"{URL}/{chat}/take-out", json={"message": result})
    assert refused.status_code == 400 and "goes with the answer" in refused.json()["error"]["message"]
    answer = server.client.post(f"{URL}/{chat}/take-out", json={"message": call}).json()
    assert texts(mine, chat) == ["what is in notes?", "Milk."] and answer["messages"] == [call, result]


def test_what_a_run_writes_below_a_message_that_was_taken_out_follows_the_one_before(server, mine):
    chat = talked(mine, "one", "two")
    first, second = ids(mine, chat)
    server.client.post(f"{URL}/{chat}/take-out", json={"message": second})
    with mine.writer(chat) as writer:
        writer.message("user", "three", parent=second)
    assert texts(mine, chat) == ["one", "three"]
    assert mine.read(chat).branch()[1].parent == first


def test_an_answer_is_edited_as_another_version_of_it(server, mine):
    chat = talked(mine, "one", "two", "three")
    second = ids(mine, chat)[1]
    made = server.client.post(f"{URL}/{chat}/answers", json={"message": second, "content": "2"})
    assert made.status_code == 201 and made.json()["edited"] and texts(mine, chat) == ["one", "2"]
    assert mine.read(chat).messages[second].content == "two"
    with mine.writer(chat) as writer:
        writer.message("user", "three", parent=made.json()["id"])
    export = server.client.get(f"{URL}/{chat}/export").json()
    copy = server.client.post("/console/api/import", json={"chat": export}).json()["id"]
    assert [message.edited for message in mine.read(copy).branch()] == [False, True, False]
    question = ids(mine, chat)[0]
    refused = server.client.post(f"{URL}/{chat}/answers", json={"message": question, "content": "1"})
    assert refused.status_code == 400


def test_a_thumb_is_kept_changed_taken_back_and_exported(server, mine):
    chat = talked(mine, "one", "two", "three", "four")
    question, answer, _, last = ids(mine, chat)
    judged = {"message": answer, "verdict": "good"}
    assert server.client.post(f"{URL}/{chat}/verdict", json=judged).json() == judged
    server.client.post(f"{URL}/{chat}/verdict", json={"message": last, "verdict": "good"})
    server.client.post(f"{URL}/{chat}/verdict", json={"message": last, "verdict": "poor"})
    shown = server.client.get(f"{URL}/{chat}").json()["messages"]
    assert [each["verdict"] for each in shown] == ["", "good", "", "poor"]
    export = server.client.get(f"{URL}/{chat}/export").json()
    copy = server.client.post("/console/api/import", json={"chat": export}).json()["id"]
    assert [message.verdict for message in mine.read(copy).branch()] == ["", "good", "", "poor"]
    server.client.post(f"{URL}/{chat}/verdict", json={"message": last, "verdict": ""})
    assert mine.read(chat).messages[last].verdict == ""
    for wrong in ({"message": question, "verdict": "good"}, {"message": answer, "verdict": "fine"}):
        assert server.client.post(f"{URL}/{chat}/verdict", json=wrong).status_code in (400, 422)
    assert mine.read(chat).skipped == 0 and texts(mine, chat) == ["one", "two", "three", "four"]


def test_a_fork_has_the_branch_up_to_its_message_and_the_settings(server, mine):
    chat = talked(mine, "one", "two", "three", "four")
    server.client.patch(f"{URL}/{chat}", json={"settings": {"system": "Be brief.", "tools": ["files"]}})
    second = ids(mine, chat)[1]
    made = server.client.post(f"{URL}/{chat}/fork", json={"message": second})
    fork = made.json()["id"]
    assert made.status_code == 201 and texts(mine, fork) == ["one", "two"]
    assert mine.read(fork).settings == ChatSettings(system="Be brief.", tools=["files"])
    assert len(texts(mine, chat)) == 4 and mine.read(fork).card.model == "tiny"


@pytest.mark.parametrize(
    "path, body",
    [
        ("take-out", {"message": "none"}),
        ("put-back", {"messages": ["none"]}),
        ("answers", {"message": "none", "content": "x"}),
        ("verdict", {"message": "none", "verdict": "good"}),
        ("fork", {"message": "none"}),
    ],
)
def test_a_message_of_another_chat_is_as_one_that_never_was(server, mine, path, body):
    chat = talked(mine, "one")
    assert server.client.post(f"{URL}/{chat}/{path}", json=body).status_code == 404
    assert texts(mine, chat) == ["one"]


# --- continue -------------------------------------------------------------------------------------------


def cut_off(chats: Chats) -> str:
    """Put an answer into the chat that was cut off at its limit; return its id."""
    with chats.folder.writer(chats.id) as writer:
        question = writer.message("user", "count", parent=None)
        answer = writer.open_answer(parent=question.id, model="fake:1b")
        writer.end(answer.id, "length", text="one two ")
    return answer.id


@pytest.fixture
def chats(serving: Callable[..., Running]) -> Callable[..., Chats]:
    return lambda script=None, **settings: Chats(serving(script, **settings))


def test_an_answer_that_was_cut_off_continues_as_a_version_of_it(chats):
    mine = chats(Script(text="three four"))
    cut = cut_off(mine)
    started = mine.run(None, extend=cut)
    seen = mine.follow(started["run"])
    assert seen.text == "one two three four" and seen.end["receipt"]["continued"]
    job = mine.server.models.served["fake:1b"].jobs[-1]
    assert job.turn == "continue" and [m.content for m in job.messages] == ["count", "one two "]
    answer = mine.message(started["answer"]["id"])
    assert (answer.content, answer.state) == ("one two three four", "whole")
    assert answer.parent == mine.message(cut).parent and mine.message(cut).content == "one two "


def test_an_answer_that_is_whole_is_not_continued(chats):
    mine = chats(Script(text="all"))
    whole = mine.run("hi")
    mine.follow(whole["run"])
    refused = mine.start(None, extend=whole["answer"]["id"])
    assert refused.status_code == 400 and "cut off or stopped" in refused.json()["error"]["message"]


def test_a_long_prompt_says_how_much_of_it_is_read(chats, monkeypatch):
    monkeypatch.setattr(run, "TICK_S", 0.02)
    monkeypatch.setattr(Computing, "prefill", (1200, 4600))
    gate = threading.Event()
    mine = chats(Script(text="done", gate=gate))
    with mine.following(mine.run()["run"]) as events:
        told = next(data for _, kind, data in events if kind == "wait" and data["why"] == "prompt")
        assert told == {"why": "prompt", "done": 1200, "of": 4600}
        gate.set()
        assert [kind for _, kind, _ in events][-1] == "end"
