"""What a caller of the console could do to the server, or with another's right, by chats and requests of its making."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from freehold.base.errors import StoreError
from freehold.serve.chats.exported import markdown
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import AttachedFile, replay
from freehold.serve.http.console.runs.again import Bits, compared
from freehold.serve.http.console.runs.run import CALLER_RUNS, Runs
from freehold.serve.http.core.keys import KeyFile, Ring, made
from freehold.serve.http.core.limits import ServerLimits
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_console_runs import eventually
from tests.http.test_mcp import configure
from tests.tools.world import program

OWN = {"Sec-Fetch-Site": "same-origin"}
CHATS = "/console/api/chats"


@pytest.fixture
def server(serving: Callable[..., Running], tmp_path: Path) -> Running:
    return serving(home=tmp_path / "mine")


def said(id: str, parent: str | None, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"id": id, "parent": parent, "role": role, "content": "x", **more}


def imported(server: Running, *messages: dict[str, Any]) -> httpx2.Response:
    chat = {"format": "freehold-chat", "version": 2, "model": "fake:1b", "messages": messages}
    return server.client.post("/console/api/import", json={"chat": chat})


def receipt(made: list[int], **bits: Any) -> dict[str, Any]:
    kept = Bits(made, [0] * len(made)).packed()
    whole = {"model": "fake:1b", "digest": "d", "engine": "e", "prompt": "p", "settings": {}}
    return {"bits": {**kept, **whole, **bits}, "sampling": {}}


@pytest.mark.parametrize("id", ["new", "0", "null", "None"])
def test_a_message_with_the_name_of_a_new_one_is_no_parent_of_itself(server, id):
    chat = imported(server, said(id, None)).json()["id"]
    started = server.client.post(f"{CHATS}/{chat}/runs", json={"parent": id, "message": {"content": "hi"}})
    assert started.status_code == 201
    assert started.json()["user"]["parent"] == id != started.json()["user"]["id"]


def test_a_file_of_backticks_is_exported_in_time():
    chat = replay(b'{"id":"a","parent":null,"role":"user","content":"x"}\n', "c")
    chat.messages["a"].files = (AttachedFile(name="f", text="`" * 2_000_000 + "\n`\n" * 1000),)
    text = markdown(chat)  # two million tries of two million characters took an hour
    assert "\n" + "`" * 2_000_001 + "\n" in text


def test_tokens_without_text_are_compared_in_one_pass():
    many = 200_000
    one, other = (Bits([first] + [7] * many, [0] * (many + 1)) for first in (1, 2))
    assert compared(one, "", other, "", ids=True)["first"] == 0  # the square of the tokens took minutes


@pytest.mark.parametrize(
    "forged",
    [
        {"bits": {"answer": hashlib.sha256(b"").hexdigest()}},
        {**receipt([1]), "sampling": 3},
        {**receipt([1]), "sampling": {"temperature": "x"}},
        {**receipt([1]), "sampling": {"penalty_window": -1}},
        receipt([1], settings=[]),
        receipt([1], settings={"max_tokens": "x"}),
        receipt([1], model=5),
        receipt([1], digest=None),
        receipt([1], ids=b64encode(b"\0\0\2").decode()),
    ],
)
def test_a_forged_receipt_is_refused_and_no_failure_of_the_server(server, forged):
    chat = imported(server, said("u", None), said("a", "u", "assistant", receipt=forged)).json()["id"]
    again = server.client.post(f"{CHATS}/{chat}/again", json={"message": "a"})
    difference = server.client.get(f"{CHATS}/{chat}/difference?a=a&b=a")
    assert {again.status_code, difference.status_code} == {400}
    assert again.json()["error"]["code"] == difference.json()["error"]["code"] == "no_bits"


@pytest.mark.parametrize("at", [1e308, -1.0, 1e15])
def test_an_imported_message_has_a_date_that_a_page_can_write(server, at):
    assert imported(server, said("a", None, at=at)).status_code == 400


@pytest.mark.parametrize("id", ["a\0b", "../../x", "x" * 10_000])
def test_a_message_id_in_a_file_leads_to_no_path(tmp_path, id):
    folder = ChatFolder.of(tmp_path)
    chat, other = folder.create().id, folder.create(title="other").id
    with folder.file(chat).open("ab") as file:
        file.write(msgspec.json.encode({**said(id, None, "assistant"), "open": True}) + b"\n")
        file.write(msgspec.json.encode(said("b", None)) + b"\n")
    assert {card.id for card in folder.cards()} == {chat, other}
    assert list(folder.read(chat).messages) == ["b"] and folder.read(chat).skipped == 1


def test_a_pipe_among_the_chats_stops_no_list(tmp_path):
    folder = ChatFolder.of(tmp_path)
    chat = folder.create().id
    os.mkfifo(folder.path / "pipe.jsonl")
    assert [card.id for card in folder.cards()] == [chat]
    with pytest.raises(StoreError, match="not a plain file"):
        folder.read("pipe")


def test_a_revoked_key_follows_its_run_no_further(serving, tmp_path):
    kept = KeyFile(tmp_path / "keys.json")
    for name in ("ann", "bob"):
        kept.add(made(name, name * 8, admin=False, models=(), rate="", tokens=""))
    gate = threading.Event()
    server = serving(Script(gate=gate), home=tmp_path, keys=Ring(file=kept))
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {'ann' * 8}"}) as ann:
        chat = ann.post(CHATS, json={"model": "fake:1b"}).json()["id"]
        run = ann.post(f"{CHATS}/{chat}/runs", json={"message": {"content": "x"}}).json()["run"]
        with ann.stream("GET", f"/console/api/runs/{run}/events") as answer:
            lines = answer.iter_lines()
            assert any(line == "event: begin" for line in lines)
            server.doors.server.guard.keys.remove("ann")
            gate.set()
            assert not any(line in ("event: text", "event: end") for line in lines)


def test_runs_that_start_at_once_are_counted_as_well():
    runs = Runs()
    places = [runs.place("address 127.0.0.1") for _ in range(CALLER_RUNS + 1)]
    for place in places[:-1]:
        place.__enter__()
    with pytest.raises(Exception, match="the limit is"), places[-1]:
        pass
    for place in places[:-1]:
        place.__exit__(None, None, None)
    runs.admit("address 127.0.0.1")


def test_a_message_that_is_asked_for_again_and_again_comes_once(server):
    chat = imported(server, said("a", None, content="y" * 1000)).json()["id"]
    found = server.client.get(f"{CHATS}/{chat}/messages", params={"ids": ",".join(["a"] * 200)}).json()
    assert [message["id"] for message in found["messages"]] == ["a"]


@pytest.mark.heavy
def test_readers_that_take_nothing_leave_long_answers_in_no_memory(serving, tmp_path):
    # Longer than what the kernel may take for the sockets of a connection.
    server = serving(home=tmp_path, limits=ServerLimits(caller_bytes=60 << 20, write_s=2.0))
    chat = imported(server, said("a", None, content="y" * (24 << 20))).json()["id"]
    url = f"{CHATS}/{chat}/export"
    with ExitStack() as open_ones:
        for _ in range(2):
            slow = open_ones.enter_context(httpx2.Client(base_url=server.url))
            assert open_ones.enter_context(slow.stream("GET", url)).status_code == 200
        refused = server.client.get(url)
        assert refused.status_code == 429, "two of them wait for their readers"
        assert eventually(lambda: server.client.get(url).status_code == 200), "who takes nothing is dropped"
    assert eventually(lambda: not server.doors.server.bodies.held)


# --- tools --------------------------------------------------------------------------------------------------


@pytest.fixture
def asking(serving: Callable[..., Running], tmp_path: Path) -> tuple[Running, str]:
    """Return a server without keys, and the owner's run that asks about a tool."""
    pytest.importorskip("mcp")
    (tmp_path / "data").mkdir()
    configure(tmp_path / "data", h=program())
    server = serving(Script(text="", calls=(("echo", '{"text": "hi"}'),)), home=tmp_path / "data")
    chat = server.owner.post(CHATS, json={"model": "fake:1b", "settings": {"tools": ["h"]}}).json()["id"]
    return server, server.owner.post(f"{CHATS}/{chat}/runs", json={"message": {"content": "x"}}).json()["run"]


def asked(server: Running, run: str) -> dict[str, Any]:
    """Return the question of a run."""
    with server.owner.stream("GET", f"/console/api/runs/{run}/events") as answer:
        kind = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            kind = value if name == "event" else kind
            if name == "data" and kind == "ask":
                return json.loads(value)
    raise AssertionError("it asks nothing")


def test_a_local_client_approves_no_call_of_the_owner_s(asking):
    server, run = asking
    question = asked(server, run)
    body = {"call": question["call"], "verdict": "always"}
    stranger = server.client.post(f"/console/api/runs/{run}/approve", json=body, headers=OWN)
    assert stranger.status_code == 403, "without keys they share chats, not rights"
    assert server.owner.get("/console/api/tools").json()["permissions"] == []
    assert server.owner.post(f"/console/api/runs/{run}/approve", json={**body, "verdict": "deny"}).is_success
    server.owner.post(f"/console/api/runs/{run}/cancel", json={})


def test_an_answer_to_one_question_is_none_to_the_next_about_the_same_call(asking):
    server, run = asking
    question = asked(server, run)
    body = {"call": question["call"], "verdict": "always", "digest": "of what the tool was before"}
    assert server.owner.post(f"/console/api/runs/{run}/approve", json=body).status_code == 404
    assert server.owner.get("/console/api/tools").json()["permissions"] == []
    right = {**body, "verdict": "deny", "digest": question["digest"]}
    assert server.owner.post(f"/console/api/runs/{run}/approve", json=right).is_success
    server.owner.post(f"/console/api/runs/{run}/cancel", json={})
