"""Runs of the console: they belong to the server, are written as they grow, and end alike however they are watched."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from freehold.base.errors import CapacityExceeded, EngineLost
from freehold.base.types import Tool, ToolCall
from freehold.route.providers.contract import NEVER_DROPS
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import (
    ChatSettings,
    SavedMessage,
    ToolAnswer,
    ToolDesk,
    ToolQuestion,
    ToolResult,
    ToolStep,
)
from freehold.serve.chats.writer import ChatWriter
from freehold.serve.http.console.runs import chatrun, handlers
from freehold.serve.http.console.runs import run as console_run
from freehold.serve.http.console.runs.again import Bits, compared
from freehold.serve.http.console.runs.run import EventLog
from tests.http.conftest import Running
from tests.http.fakes import FakeServed, Script, failing

TEXT = "Hello there, world."


@dataclass
class Followed:
    """What a reader of a run got."""

    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for _, each, data in self.events if each == kind]

    @property
    def text(self) -> str:
        """The text, of which every piece stands where it says."""
        out = ""
        for data in self.of("text"):
            assert data["at"] == len(out.encode("utf-16-le")) // 2, "a hole, or a piece twice"
            out += data["text"]
        return out

    @property
    def end(self) -> dict[str, Any]:
        (end,) = self.of("end")
        return end


def parsed(lines: Iterator[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Read server-sent events."""
    now: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            now[name] = value
        elif now:
            yield int(now["id"]), now["event"], json.loads(now["data"])
            now = {}


class Chats:
    """The chats of one server, as its user."""

    def __init__(self, server: Running, client: httpx2.Client | None = None, key: str = "") -> None:
        self.server, self.client = server, client or server.client
        home = server.doors.settings.home
        assert home is not None
        self.folder = ChatFolder.of(home, key)
        self.id = self.folder.create(model="fake:1b").id

    def start(self, text: str | None = "hi", **body: Any) -> httpx2.Response:
        said = {} if text is None else {"message": {"content": text}}
        return self.client.post(f"/console/api/chats/{self.id}/runs", json={**said, **body})

    def run(self, text: str | None = "hi", **body: Any) -> dict[str, Any]:
        answer = self.start(text, **body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    @contextmanager
    def following(self, run: str, after: int = 0, **headers: str) -> Iterator[Iterator[tuple[int, str, Any]]]:
        url = f"/console/api/runs/{run}/events?after={after}" if after else f"/console/api/runs/{run}/events"
        with self.client.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            yield parsed(answer.iter_lines())

    def follow(self, run: str, after: int = 0, **headers: str) -> Followed:
        with self.following(run, after, **headers) as events:
            return Followed(list(events))

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.client.post(f"/console/api/{path}", json=body)

    def message(self, id: str) -> SavedMessage:
        return self.folder.read(self.id).messages[id]


@pytest.fixture
def chats(serving: Callable[..., Running]) -> Callable[..., Chats]:
    return lambda script=None, **settings: Chats(serving(script, **settings))


def eventually(true: Callable[[], object], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.01)
    return bool(found)


def test_an_answer_comes_as_events_and_lies_in_the_chat(chats):
    mine = chats(Script(thinking="hm well", text=TEXT))
    started = mine.run(settings={"system": "be brief"})
    seen = mine.follow(started["run"])
    assert [kind for _, kind, _ in seen.events][:2] == ["begin", "ready"]
    assert seen.text == TEXT and seen.end["finish"] == "stop"
    assert "".join(data["text"] for data in seen.of("thinking")) == "hm well"
    answer = mine.message(started["answer"]["id"])
    assert (answer.content, answer.thinking, answer.state) == (TEXT, "hm well", "whole")
    assert seen.end["receipt"]["thinking_s"] >= 0, "a page that is opened later says how long it thought"
    assert mine.message(started["user"]["id"]).content == "hi"
    job = mine.server.models.served["fake:1b"].jobs[-1]
    assert [m.content for m in job.messages] == ["be brief", "hi"]


def test_a_reload_at_any_event_leaves_no_hole_and_costs_one_event_a_text(chats):
    mine = chats(Script(thinking="one two", text="a 𝄞 b 漢 c d e"))
    run = mine.run()["run"]
    whole = mine.follow(run)
    for after in range(whole.events[-1][0] + 1):
        seen = mine.follow(run, after)
        assert [number for number, _, _ in seen.events] == sorted({n for n, _, _ in seen.events})
        assert all(number > after for number, _, _ in seen.events)
        assert len(seen.of("text")) <= 1 and len(seen.of("thinking")) <= 1
        for data in seen.of("text"):
            before = "a 𝄞 b 漢 c d e".encode("utf-16-le")[: 2 * data["at"]]
            assert before.decode("utf-16-le") + data["text"] == "a 𝄞 b 漢 c d e"
    assert mine.follow(run, **{"Last-Event-ID": str(whole.events[-1][0])}).events == []
    assert mine.follow(run, after=10**9).end["finish"] == "stop", "a number of another run begins anew"


def test_a_run_continues_without_a_reader_and_two_readers_see_the_same(chats):
    gate = threading.Event()
    mine = chats(Script(text=TEXT, gate=gate))
    run = mine.run()["run"]
    with mine.following(run) as one, mine.following(run) as other:
        assert next(one)[1] == next(other)[1] == "begin"
    gate.set()  # there is no reader
    assert eventually(lambda: mine.folder.read(mine.id).branch()[-1].state == "whole")
    assert mine.follow(run).text == mine.follow(run).text == TEXT


def test_an_answer_is_written_while_it_grows(chats):
    class Gate(threading.Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked < 3 or super().is_set()

    gate = Gate()
    mine = chats(Script(text=TEXT, gate=gate))
    started = mine.run()
    assert eventually(lambda: mine.message(started["answer"]["id"]).content)
    half = mine.message(started["answer"]["id"])
    assert half.state == "open" and TEXT.startswith(half.content) and half.content != TEXT
    gate.set()
    assert mine.follow(started["run"]).text == TEXT


def test_a_cancelled_run_stops_the_engine_and_keeps_what_there_is(chats):
    mine = chats(Script(text="word " * 500, delay=0.01))
    started = mine.run()
    with mine.following(started["run"]) as events:
        while next(events)[1] != "text":
            pass
        assert mine.post(f"runs/{started['run']}/cancel").status_code == 200
        seen = Followed(list(events))
    (stream,) = mine.server.models.served["fake:1b"].streams
    assert seen.end["finish"] == "stopped" and stream.closed and not stream.ended
    answer = mine.message(started["answer"]["id"])
    assert answer.state == "stopped" and answer.content.startswith("word")
    assert answer.receipt is not None and answer.receipt["tokens"]["answer"] > 0
    assert mine.post(f"runs/{started['run']}/cancel").status_code == 200, "after the end it is harmless"


def test_an_engine_s_failure_ends_a_run_with_its_words_and_what_there_is(chats):
    mine = chats(failing(2, EngineLost("the engine of fake:1b died", "ask again")))
    started = mine.run()
    end = mine.follow(started["run"]).end
    assert end["finish"] == "failed" and end["error"]["code"] == "engine_lost"
    answer = mine.message(started["answer"]["id"])
    assert answer.state == "failed" and answer.content == "Hello there," and answer.error == end["error"]


def test_an_engine_that_is_started_again_is_noted(chats):
    gate = threading.Event()
    mine = chats(Script(text=TEXT, gate=gate))
    run = mine.run()["run"]
    with mine.following(run) as events:
        while next(events)[1] != "ready":
            pass
        mine.server.models.served["fake:1b"].loaded.restarts += 1
        while (event := next(events))[1] != "note":
            pass
        gate.set()
        assert event[2]["code"] == "engine" and Followed(list(events)).text == TEXT


def test_a_full_disk_costs_nothing_and_the_answer_is_saved_once_there_is_room(chats, monkeypatch):
    monkeypatch.setattr(chatrun, "AGAIN_S", 0.05)
    monkeypatch.setattr(chatrun, "SAVE_S", 0.02)
    full, append = threading.Event(), ChatWriter._append

    def appended(self: ChatWriter, *args: Any, **kwargs: Any) -> None:
        if full.is_set():
            raise CapacityExceeded("the disk is full: the chat is saved up to here")
        append(self, *args, **kwargs)

    monkeypatch.setattr(ChatWriter, "_append", appended)
    mine = chats(Script(text="some words of an answer", delay=0.05))
    started = mine.run()
    full.set()
    with mine.following(started["run"]) as events:
        seen = Followed()
        for event in events:
            seen.events.append(event)
            if event[1] == "end":
                assert event[2]["saved"] is False
                assert mine.message(started["answer"]["id"]).state == "open"
                full.clear()
    assert [note["code"] for note in seen.of("note")] == ["unsaved", "saved"]
    answer = mine.message(started["answer"]["id"])
    assert (answer.content, answer.state) == ("some words of an answer", "whole") and answer.receipt


def test_a_full_disk_refuses_a_new_message_before_anything_is_computed(chats, monkeypatch):
    mine = chats()

    def full(*_: Any, **__: Any) -> None:
        raise CapacityExceeded("the disk is full: the chat is saved up to here", "free some space")

    monkeypatch.setattr(ChatWriter, "_append", full)
    assert mine.start().status_code == 503 and not mine.server.models.served["fake:1b"].jobs
    assert not mine.folder.read(mine.id).messages


def test_a_stop_lets_a_run_end_that_nobody_reads(chats):
    mine = chats(Script(text=TEXT, delay=0.1), drain_s=20.0)
    started = mine.run()
    mine.client.close()
    mine.server.stop()
    mine.server.thread.join(30)
    answer = mine.message(started["answer"]["id"])
    assert (answer.content, answer.state) == (TEXT, "whole") and mine.server.doors.drained


def test_a_run_that_outlasts_the_drain_is_lost_with_what_there_is(chats):
    mine = chats(Script(text="word " * 5000, delay=0.01), drain_s=0.3)
    started = mine.run()
    with mine.following(started["run"]) as events:
        while next(events)[1] != "text":
            pass
        mine.server.stop()
        assert Followed(list(events)).end["finish"] == "lost"
    mine.server.thread.join(30)
    answer = mine.message(started["answer"]["id"])
    assert answer.state == "lost" and answer.content.startswith("word") and answer.error
    assert not mine.server.doors.drained


# --- jobs --------------------------------------------------------------------------------------------


def test_files_stand_before_the_text_and_the_branch_is_the_chat(chats):
    mine = chats()
    first = mine.run("one")
    mine.follow(first["run"])
    file = {"name": "a.txt", "text": "inside\n"}
    second = mine.run(parent=first["answer"]["id"], message={"content": "two", "files": [file]})
    mine.follow(second["run"])
    job = mine.server.models.served["fake:1b"].jobs[-1]
    assert [m.role for m in job.messages] == ["user", "assistant", "user"]
    assert job.messages[2].content == "File a.txt:\n```\ninside\n```\n\ntwo"
    other = mine.run(None, parent=second["user"]["id"])
    mine.follow(other["run"])
    assert mine.server.models.served["fake:1b"].jobs[-1].messages == job.messages
    assert mine.message(other["answer"]["id"]).parent == second["user"]["id"]


def test_a_picture_goes_to_an_engine_that_sees_and_to_no_other(chats):
    picture = "data:image/png;base64,iVBORw0KGgo="
    mine = chats(Script(sees=True))
    mine.follow(mine.run(message={"content": "what is it?", "images": [picture]})["run"])
    (message,) = mine.server.models.served["fake:1b"].jobs[-1].messages
    assert [type(part).__name__ for part in message.parts] == ["Image", "str"]
    blind = chats()
    end = blind.follow(blind.run(message={"content": "?", "images": [picture]})["run"]).end
    assert end["finish"] == "failed" and end["error"]["code"] == "unsupported_content"


def test_settings_are_asked_for_and_a_seed_is_drawn_that_a_page_can_hold(chats):
    mine = chats()
    settings = {"think": True, "max_tokens": 2, "sampling": {"temperature": 0.5, "top_k": 7}}
    mine.follow(mine.run(settings=settings)["run"])
    job = mine.server.models.served["fake:1b"].jobs[-1]
    assert job.think is True and job.max_tokens == 2
    assert job.sampling["temperature"] == 0.5 and 0 <= job.sampling["seed"] < 2**32
    message = mine.folder.read(mine.id).branch()[-1]
    assert message.state == "length" and message.receipt["sampling"]["seed"] == job.sampling["seed"]


def test_a_full_context_leaves_out_the_oldest_messages_unless_the_chat_forbids_it(chats):
    mine = chats(Script(text=TEXT, dropped=2))
    seen = mine.follow(mine.run()["run"])
    jobs = mine.server.models.served["fake:1b"].jobs
    assert jobs[-1].overflow == "drop-oldest"
    assert seen.of("ready")[0]["context"]["dropped_messages"] == 2
    assert seen.end["receipt"]["context"]["dropped_messages"] == 2
    run = mine.run(settings={"overflow": "error"})
    mine.follow(run["run"])
    assert jobs[-1].overflow == "error"
    asked = mine.message(run["answer"]["id"]).receipt["bits"]["settings"]
    assert asked["overflow"] == "error", "the same bits come of the same prompt"
    assert mine.start(settings={"overflow": "drop-newest"}).status_code == 400


def test_an_answer_of_a_provider_does_not_warn_that_it_would_drop_no_message(chats):
    mine = chats(Script(text=TEXT, warnings=(NEVER_DROPS, "another")))
    assert mine.follow(mine.run()["run"]).end["receipt"]["warnings"] == ["another"]


def test_a_chat_has_no_more_messages_than_an_import_takes(chats, monkeypatch):
    mine = chats()
    mine.follow(mine.run()["run"])
    monkeypatch.setattr(handlers, "MAX_MESSAGES", handlers.FOR_A_RUN + 1)
    refused = mine.start()
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "chat_too_long"


@pytest.mark.parametrize(
    "body, status, code",
    [
        ({"message": {"content": "hi"}, "parent": "nope"}, 404, "no_message"),
        ({}, 400, None),
        ({"message": {"content": "hi"}, "model": "nope:1b"}, 404, "model_not_found"),
        ({"message": {"content": "hi"}, "settings": {"sampling": {"heat": 1}}}, 400, None),
        (
            {"message": {"content": "hi"}, "settings": {"sampling": {"temperature": "hot"}}},
            400,
            "invalid_value",
        ),
        ({"message": {"content": "hi"}, "settings": {"max_tokens": 0}}, 400, None),
        ({"message": {"content": "hi"}, "settings": {"tools": ["files"]}}, 403, "not_permitted"),
        ({"message": {"content": 5}}, 400, "invalid_value"),
        ({"message": {"content": "hi", "images": ["data:text/html,x"]}}, 400, "unsupported_content"),
        ({"message": {"content": "hi", "images": ["http://169.254.169.254/x"]}}, 400, None),
    ],
)
def test_a_wrong_start_is_refused_and_writes_nothing(chats, body, status, code):
    mine = chats()
    answer = mine.client.post(f"/console/api/chats/{mine.id}/runs", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code and not mine.folder.read(mine.id).messages


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "9" * 30, "%D9%A1"])
def test_a_wrong_number_of_an_event_is_refused(chats, after):
    mine = chats()
    run = mine.run()["run"]
    assert mine.client.get(f"/console/api/runs/{run}/events?after={after}").status_code == 400


# --- limits, accounts, numbers -----------------------------------------------------------------------


def test_a_caller_has_so_many_runs_at_a_time(chats, monkeypatch):
    monkeypatch.setattr(console_run, "CALLER_RUNS", 2)
    gate = threading.Event()
    mine = chats(Script(gate=gate))
    runs = [mine.run()["run"] for _ in range(2)]
    refused = mine.start()
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "runs_too_many"
    gate.set()
    for run in runs:
        mine.follow(run)
    mine.follow(mine.run()["run"])


def test_ended_runs_are_forgotten_after_their_time(chats, monkeypatch):
    mine = chats()
    run = mine.run()["run"]
    mine.follow(run)
    runs = mine.server.doors.server.part(console_run.Runs)
    assert eventually(lambda: not runs.of(mine.folder, mine.id))
    monkeypatch.setattr(console_run, "KEPT_S", 0.0)
    mine.server.loop.call_soon_threadsafe(runs._sweep)
    assert eventually(lambda: mine.client.get(f"/console/api/runs/{run}/events").status_code == 404)


def test_a_run_is_in_the_metrics_and_its_key_s_account(serving, tmp_path):
    from freehold.serve.http.core.keys import Key, Ring, hashed

    key = Key(name="anna", sha256=hashed(b"fh-anna-key-0123456789"), tokens="40/day")
    server = serving(Script(text=TEXT), keys=Ring([key]))
    client = httpx2.Client(base_url=server.url, headers={"Authorization": "Bearer fh-anna-key-0123456789"})
    with client:
        mine = Chats(server, client, key="anna")
        spent = server.doors.server.accounts.spent("anna")
        run = mine.run("one two three")["run"]
        assert mine.follow(run).text == TEXT
        assert eventually(lambda: server.doors.server.accounts.spent("anna") == spent + 6)
        numbers = server.admin.get("/metrics").text
        assert 'route="/console/api/runs",status="200"' in numbers
        assert (
            'vllm:request_success_total{engine="0",finished_reason="stop",model_name="fake:1b"} 1.0'
            in numbers
        )
        assert server.models.served["fake:1b"].jobs[-1].tenant == "anna"
        assert server.models.origins[-1].door == "console"
        stranger = Chats(server, server.admin)
        assert stranger.client.get(f"/console/api/runs/{run}/events").json() == (
            stranger.client.get("/console/api/runs/never/events").json()
        )
        assert stranger.post(f"runs/{run}/cancel").status_code == 404
        server.doors.server.accounts.spend("anna", 100)
        assert mine.follow(mine.run()["run"]).end["error"]["code"] == "insufficient_quota"


# --- the same bits again -----------------------------------------------------------------------------


def answered(mine: Chats, **body: Any) -> str:
    started = mine.run(**body)
    mine.follow(started["run"])
    return started["answer"]["id"]


def verdict(mine: Chats, message: str) -> dict[str, Any]:
    answer = mine.post(f"chats/{mine.id}/again", message=message)
    assert answer.status_code == 201, answer.text
    (said,) = mine.follow(answer.json()["run"]).of("again")
    return said


def test_the_same_bits_come_again_and_the_chat_stays_as_it_is(chats):
    mine = chats(Script(thinking="hm", text=TEXT))
    message, before = answered(mine), mine.folder.file(mine.id).read_bytes() if False else None
    assert before is None
    size = mine.folder.file(mine.id).stat().st_size
    assert verdict(mine, message) == {"equal": True, "tokens": 4}
    assert mine.folder.file(mine.id).stat().st_size == size
    first, again = mine.server.models.served["fake:1b"].jobs[-2:]
    assert again.messages == first.messages and again.sampling["seed"] == first.sampling["seed"]


def test_another_answer_is_told_by_its_first_token_that_differs(chats):
    mine = chats(Script(text="one two three four"))
    message = answered(mine)
    mine.server.models.served["fake:1b"].script.text = "one two 3 four"
    said = verdict(mine, message)
    assert said == {"equal": False, "first": 2, "was": " three", "is": " 3", "at": 7, "tokens": 4}
    assert eventually(lambda: mine.server.models.served["fake:1b"].streams[-1].closed)
    mine.server.models.served["fake:1b"].script.text = "one two"
    assert verdict(mine, message)["first"] == 2 and verdict(mine, message)["is"] == ""


def test_other_files_or_another_prompt_are_said_and_never_called_equal(chats):
    mine = chats(Script(text=TEXT))
    message = answered(mine)
    mine.server.models.stamp = "other files"
    jobs = len(mine.server.models.served["fake:1b"].jobs)
    assert "files" in verdict(mine, message)["changed"]
    assert len(mine.server.models.served["fake:1b"].jobs) == jobs, "nothing was computed"
    mine.server.models.stamp = "files"
    mine.server.models.served["fake:1b"].words._words.insert(0, "another tokenizer")
    assert "prompt" in verdict(mine, message)["changed"]


def test_an_answer_that_was_stopped_is_compared_as_far_as_it_went(chats):
    mine = chats(Script(text="word " * 500, delay=0.01))
    started = mine.run()
    with mine.following(started["run"]) as events:
        while next(events)[1] != "text":
            pass
        mine.post(f"runs/{started['run']}/cancel")
        list(events)
    tokens = mine.message(started["answer"]["id"]).receipt["bits"]["tokens"]
    assert verdict(mine, started["answer"]["id"]) == {"equal": True, "tokens": tokens}


def test_an_answer_without_token_ids_cannot_be_compared(chats):
    mine = chats(Script(text=TEXT, remote=True))
    message = answered(mine)
    assert mine.message(message).receipt["bits"] is None
    refused = mine.post(f"chats/{mine.id}/again", message=message)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "no_bits"


def test_two_answers_are_equal_or_part_at_a_token(chats):
    mine = chats(Script(text="one two three four"))
    started = mine.run(settings={"sampling": {"seed": 5}})
    mine.follow(started["run"])
    user, first = started["user"]["id"], started["answer"]["id"]
    url = f"/console/api/chats/{mine.id}/difference"
    second = answered(mine, text=None, parent=user, settings={"sampling": {"seed": 5}})
    said = mine.client.get(url, params={"a": first, "b": second}).json()
    assert said["equal"] and said["tokens"] == [4, 4] and len(said["tok_s"]) == 2
    mine.server.models.served["org/fake:2b"].script.text = "one two thread four"
    third = answered(mine, text=None, parent=user, model="org/fake:2b", settings={"sampling": {"seed": 5}})
    said = mine.client.get(url, params={"a": first, "b": third}).json()
    assert (said["first"], said["was"], said["is"], said["at"]) == (2, " three", " thread", 7)
    assert mine.client.get(url, params={"a": first, "b": "nope"}).status_code == 404


def test_ids_and_the_texts_of_tokens_are_kept_whole():
    bits = Bits()
    pieces = [((1,), "a"), ((70_000, 16_000_000), "𝄞x"), ((5,), ""), ((6,), "y" * 600), ((), " end")]
    for ids, text in pieces:
        bits.add(ids, text)
    text = "".join(piece for _, piece in pieces)
    again = Bits.of(bits.packed())
    assert again == bits and again.piece(2, text) == "𝄞x" and again.piece(1, text) == "𝄞x"
    assert again.piece(4, text) == "y" * 600 + " end" and again.piece(9, text) == ""
    assert compared(bits, text, again, text, ids=True) == {"equal": True}
    with pytest.raises(ValueError, match="digest"):
        Bits.of({**bits.packed(), "tokens": 4, "ids": "AAAA"})


def test_a_long_text_is_joined_and_still_merges_at_any_event():
    log, whole = EventLog(), "ab𝄞 " * 5000
    log.fact("begin", {})
    for i in range(0, len(whole), 2):
        log.text("text", whole[i : i + 2])
    for after in (0, 1, 2, 4096, 4097, 4098, 9999, log.last - 2, log.last - 1):
        ((number, _, data),) = [
            e for e in parsed(iter(log.after(after).decode().split("\n"))) if e[1] == "text"
        ]
        raw = whole.encode("utf-16-le")
        assert number == log.last and raw[2 * data["at"] :].decode("utf-16-le") == data["text"]


def test_settings_that_a_chat_keeps_are_used_without_being_sent(chats):
    mine = chats()
    mine.id = mine.folder.create(model="fake:1b", settings=ChatSettings(system="kept")).id
    mine.follow(mine.run()["run"])
    assert mine.server.models.served["fake:1b"].jobs[-1].messages[0].content == "kept"


class Tools:
    """A ToolRunner: asks about each call, and answers with the arguments that were allowed; then `after` is played."""

    def __init__(self, mine: Chats, after: Script | None) -> None:
        self._mine, self._after = mine, after
        self.answers: list[ToolAnswer] = []
        self.closed = False
        self.starts_s = 0.0

    async def offer(self) -> list[Tool]:
        await asyncio.sleep(self.starts_s)
        return [Tool("echo", "Echoes.", {"type": "object"})]

    def server_of(self, name: str) -> str:
        return "files" if name == "echo" else ""

    async def use(self, call: ToolCall, desk: ToolDesk) -> ToolResult:
        where, name, asked = "files", call.name, call.arguments
        answer = await desk.ask(ToolQuestion(call=call.id, server=where, tool=name, arguments=asked))
        self.answers.append(answer)
        content = answer.word or answer.arguments or asked
        state = "denied" if answer.verdict == "deny" else "done"
        desk.say(
            ToolStep(call=call.id, server=where, tool=name, arguments=asked, state=state, result=content)
        )
        if self._after is not None:
            self._mine.server.models.served["fake:1b"].script = self._after
        return ToolResult(content=content, server=where, state=state)

    async def aclose(self) -> None:
        self.closed = True


TWO_CALLS = (("echo", '{"a": 1}'), ("echo", '{"b": 2}'))


@pytest.fixture
def tooled(chats, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Chats, Tools]]:
    """Chats whose model calls tools twice in one answer, and says `after` in the next."""

    def make(after: Script | None, first: Script | None = None, **settings: object) -> tuple[Chats, Tools]:
        mine = chats(first or Script(text="I look.", calls=TWO_CALLS), **settings)
        tools = Tools(mine, after)
        monkeypatch.setattr(handlers, "_tools", lambda call, chat, names: tools if names else None)
        monkeypatch.setattr(handlers, "tool_user", lambda call: "")  # the caller counts as the owner here
        return mine, tools

    return make


def branch(mine: Chats, leaf: str | None = None) -> list[SavedMessage]:
    saved = mine.folder.read(mine.id)
    assert saved.leaf is not None
    return list(saved.branch(leaf or saved.leaf))


def test_a_run_says_that_it_waits_for_its_tools(tooled, monkeypatch):
    monkeypatch.setattr(console_run, "TICK_S", 0.02)
    mine, tools = tooled(None, Script(text="No call."))
    tools.starts_s = 0.5
    run = mine.run("look", settings={"tools": ["files"]})["run"]
    with mine.following(run) as events:
        assert next(data for _, kind, data in events if kind == "wait") == {"why": "tools"}
    assert mine.follow(run).end["finish"] == "stop"


def test_a_round_of_tools_waits_for_each_answer_and_is_in_the_chat_and_before_the_model(tooled):
    mine, tools = tooled(Script(text="Both done."))
    run = mine.run("look", settings={"tools": ["files"]})["run"]
    model = mine.server.models.served["fake:1b"]
    seen = Followed()
    with mine.following(run) as events:
        for event in events:
            seen.events.append(event)
            if event[1] == "ask":
                assert len(model.jobs) == 1 and len(tools.answers) == len(seen.of("ask")) - 1
                call = event[2]["call"]
                assert mine.post(f"runs/{run}/approve", call="other", verdict="once").status_code == 404
                said = {"arguments": '{"a": 9}'} if call == "call_0" else {"word": "not that one"}
                verdict = "once" if call == "call_0" else "deny"
                assert mine.post(f"runs/{run}/approve", call=call, verdict=verdict, **said).status_code == 200
                assert mine.post(f"runs/{run}/approve", call=call, verdict="once").status_code == 404
    first, second = seen.of("begin")
    (calls,) = seen.of("calls")
    assert calls["answer"] == first["answer"] and [c["server"] for c in calls["calls"]] == ["files", "files"]
    assert [data["state"] for data in seen.of("tool")] == ["done", "denied"]
    user, asking, one, two, last = branch(mine)
    assert [m.role for m in (user, asking, one, two, last)] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert asking.content == "I look." and [c.arguments for c in asking.calls] == [a for _, a in TWO_CALLS]
    assert [(m.call, m.content) for m in (one, two)] == [("call_0", '{"a": 9}'), ("call_1", "not that one")]
    assert [m.outcome for m in (one, two)] == ["done", "denied"], "a reload shows which call was denied"
    assert [r["outcome"] for r in seen.of("result")] == ["done", "denied"]
    assert [(r["message"], r["parent"], r["content"]) for r in seen.of("result")] == [
        (one.id, asking.id, one.content),
        (two.id, one.id, two.content),
    ]
    assert second["answer"] == last.id and second["parent"] == two.id
    assert last.content == "Both done." and last.state == "whole" and tools.closed
    assert [m.role for m in model.jobs[1].messages or ()] == ["user", "assistant", "tool", "tool"]
    assert all(job.tools for job in model.jobs)
    again = mine.follow(run)  # as after a reload: the same, whole
    assert [kind for _, kind, _ in again.events].count("ask") == 2 and again.end == seen.end


def test_a_run_that_is_stopped_while_it_asks_runs_nothing_and_leaves_no_call_without_a_result(tooled):
    mine, tools = tooled(None)
    run = mine.run("look", settings={"tools": ["files"]})["run"]
    with mine.following(run) as events:
        while next(events)[1] != "ask":
            pass
        mine.post(f"runs/{run}/cancel")
        seen = Followed(list(events))
    assert seen.end["finish"] == "stopped" and not tools.answers and tools.closed
    _, asking, one, two, last = branch(mine)
    assert asking.state == "whole" and {c.id for c in asking.calls} == {one.call, two.call}
    assert one.content == two.content == chatrun.UNFINISHED
    assert (last.state, last.content) == ("stopped", "")
    mine.server.models.served["fake:1b"].script = Script(text="I see.")
    assert mine.follow(mine.run("and now?", parent=last.id)["run"]).end["finish"] == "stop"


@pytest.mark.parametrize("asked", ["before the stop", "after the stop"])
def test_a_stop_does_not_wait_for_a_person_s_answer(tooled, asked: str):
    gate = threading.Event()
    mine, tools = tooled(None, Script(text="I look.", calls=TWO_CALLS, gate=gate), drain_s=60.0)
    run = mine.run("look", settings={"tools": ["files"]})["run"]
    with mine.following(run) as events:
        if asked == "after the stop":
            mine.server.stop()
            assert eventually(lambda: mine.server.doors.server.health.stopping)
        gate.set()
        while next(events)[1] != "ask":
            pass
        if asked == "before the stop":
            mine.server.stop()
        began = time.monotonic()
        assert Followed(list(events)).end["finish"] == "lost"
    mine.server.thread.join(30)
    assert not mine.server.thread.is_alive() and time.monotonic() - began < 20
    assert not tools.answers and tools.closed
    _, asking, one, two, last = branch(mine)
    assert asking.state == "whole" and one.content == two.content == chatrun.UNFINISHED
    assert last.state == "lost" and last.error and "stopping" in last.error["message"]


def test_no_answer_to_a_question_is_no(tooled, monkeypatch):
    monkeypatch.setattr(chatrun, "ASK_S", 0.05)
    mine, tools = tooled(Script(text="A pity."))
    end = mine.follow(mine.run("look", settings={"tools": ["files"]})["run"]).end
    assert end["finish"] == "stop"
    assert [answer.verdict for answer in tools.answers] == ["deny", "deny"] and "no answer" in tools.answers[
        0
    ].word


def in_turns(monkeypatch: pytest.MonkeyPatch, *scripts: Script) -> list[Script]:
    """Have each answer follow the next script, and further ones the last; return those that are left."""
    begin, left = FakeServed.start, list(scripts)

    async def start(served: FakeServed, job: Any, keep_alive: float | None = None) -> Any:
        served.script = left.pop(0) if len(left) > 1 else left[0]
        return await begin(served, job, keep_alive)

    monkeypatch.setattr(FakeServed, "start", start)
    return left


MISREAD = 'I look. <tool_call>\n{"name": "echo", "arguments": {"a": 1'


def test_a_call_that_cannot_be_read_is_said_and_asked_for_once_more(tooled, monkeypatch):
    mine, _ = tooled(None)
    in_turns(monkeypatch, Script(text=MISREAD), Script(text="It says hi."))
    run = mine.run("look", settings={"tools": ["files"]})["run"]
    seen = mine.follow(run)
    assert seen.text == "I look. It says hi." and seen.end["finish"] == "stop"
    (note,) = seen.of("note")
    assert "cannot be read" in note["text"] and "once more" in note["text"]
    first, second = mine.server.models.served["fake:1b"].jobs
    assert [m.content for m in second.messages] == [
        first.messages[0].content,
        MISREAD,
        second.messages[2].content,
    ]
    assert second.tools and "readable tool call" in second.messages[2].content
    _, answer = branch(mine)
    assert answer.content == seen.text and answer.receipt is not None
    assert answer.receipt["asked_again"] and "bits" not in answer.receipt
    again = mine.post(f"chats/{mine.id}/again", message=answer.id)
    assert again.status_code == 400 and "asked again" in again.json()["error"]["message"]


def test_after_two_unreadable_calls_a_model_answers_without_tools_or_not_at_all(tooled, monkeypatch):
    mine, _ = tooled(None)
    left = in_turns(monkeypatch, Script(text=MISREAD), Script(text=MISREAD), Script(text="In words."))
    seen = mine.follow(mine.run("look", settings={"tools": ["files"]})["run"])
    assert seen.text.endswith("In words.") and "without tools" in seen.of("note")[-1]["text"]
    assert [bool(job.tools) for job in mine.server.models.served["fake:1b"].jobs] == [True, True, False]
    left[:] = [Script(text=MISREAD)]
    end = mine.follow(mine.run("look", settings={"tools": ["files"]})["run"]).end
    assert end["error"]["code"] == "unreadable_calls"


def test_what_came_of_a_possible_call_is_kept_where_the_answer_is_stopped(tooled):
    class Gate(threading.Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked < 4

    gate = Gate()
    mine, _ = tooled(None, Script(text='{ "a" "b" "c" "d" "e"', gate=gate))
    run = mine.run("look", settings={"tools": ["files"]})["run"]
    assert eventually(lambda: gate.asked > 20)
    assert mine.post(f"runs/{run}/cancel").status_code == 200
    seen = mine.follow(run)
    assert seen.end["finish"] == "stopped" and seen.text.startswith("{")
    assert branch(mine)[-1].content == seen.text


def test_a_model_that_never_stops_calling_is_stopped_and_says_why(tooled, monkeypatch):
    monkeypatch.setattr(chatrun, "ASK_S", 0.001)
    monkeypatch.setattr(chatrun, "MAX_ROUNDS", 3)
    mine, tools = tooled(None)
    end = mine.follow(mine.run("look", settings={"tools": ["files"]})["run"]).end
    assert end["error"]["code"] == "too_many_calls" and len(tools.answers) == 6
    assert branch(mine)[-1].error == end["error"]
