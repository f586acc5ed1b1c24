"""Runs with a real server process and a scripted model: nothing is lost, whatever is reloaded, stopped or killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.console.conftest import Served
from tests.console.scripted import write_scripted
from tests.console.talking import Heard, Talker

TEXT = "".join(f"Line {i}: {i * 7919 % 10007} 漢字 and 𝄞.\n\n" for i in range(600))
ENDLESS = "".join(f"Part {i}: {i * 6007 % 10009}.\n\n" for i in range(3000))  # lasts until a server is killed
SCRIPTS = {"hello": "Hello! What shall I say?", "long": TEXT, "endless": ENDLESS}
MODEL = "runs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted(tmp_path_factory.mktemp("runs") / f"{MODEL}.gguf", SCRIPTS)


@pytest.fixture
def served(serving: Callable[..., Served], model: Path) -> Iterator[tuple[Served, Talker, str]]:
    server = serving(str(model))
    talker = Talker(server.url)
    names = [each["id"] for each in talker.http.get("/v1/models").json()["data"]]
    yield server, talker, next(name for name in names if MODEL in name)
    talker.http.close()


def engine_of(server: Served) -> psutil.Process:
    """Return the process that computes: of the server's children the one that uses most memory."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    return max(children, key=lambda each: each.memory_info().rss)


def after_some(units: int) -> Callable[[Heard], bool]:
    return lambda heard: len(heard.text) >= units or heard.end is not None


@pytest.mark.heavy
def test_reloads_at_random_moments_leave_no_hole(served: tuple[Served, Talker, str]):
    _, talker, name = served
    run, heard = talker.run(talker.chat(name), "say something long")["run"], Heard()
    dice = random.Random(1)
    reloads = 0
    while heard.end is None:
        talker.follow(run, heard, after_some(len(heard.text) + dice.randrange(1, 1500)))
        reloads += 1
    assert heard.text == TEXT and reloads > 5


@pytest.mark.heavy
def test_a_cancelled_run_leaves_the_engine_idle_and_a_prefix_in_the_chat(served: tuple[Served, Talker, str]):
    _, talker, name = served
    chat = talker.chat(name)
    started = talker.run(chat, "say something long")
    heard = talker.follow(started["run"], until=after_some(500))
    talker.json("POST", f"runs/{started['run']}/cancel", {})
    heard = talker.follow(started["run"], heard)
    assert heard.end and heard.end["finish"] == "stopped"
    message = talker.message(chat, started["answer"]["id"])
    assert message["state"] == "stopped" and message["content"] == heard.text
    assert TEXT.startswith(heard.text) and heard.text != TEXT
    assert running(talker) == 0
    assert talker.again(chat, message["id"])["equal"]


def running(talker: Talker) -> float:
    """Return how many sequences the engine computes, once its last step is counted."""
    line = ""
    for _ in range(100):
        lines = talker.http.get("/metrics").text.splitlines()
        (line,) = [each for each in lines if each.startswith("vllm:num_requests_running{")]
        if float(line.split()[-1]) == 0:
            break
        time.sleep(0.02)
    return float(line.split()[-1])


@pytest.mark.heavy
def test_an_engine_s_death_changes_no_bit_and_is_said(served: tuple[Served, Talker, str]):
    server, talker, name = served
    chat = talker.chat(name)
    started = talker.run(chat, "say something long")
    heard = talker.follow(started["run"], until=after_some(random.Random(2).randrange(200, 4000)))
    engine_of(server).kill()
    heard = talker.follow(started["run"], heard)
    assert heard.text == TEXT and heard.end and heard.end["finish"] == "stop"
    assert [note["code"] for note in heard.data["note"]] == ["engine"]
    assert talker.message(chat, started["answer"]["id"])["content"] == TEXT
    assert talker.again(chat, started["answer"]["id"])["equal"]


@pytest.mark.heavy
def test_a_killed_server_leaves_the_answer_so_far_and_says_lost(served: tuple[Served, Talker, str]):
    server, talker, name = served
    chat = talker.chat(name)
    started = talker.run(chat, "say something endless")
    talker.follow(started["run"], until=after_some(100))
    eventually_saved(talker, chat, started["answer"]["id"])
    server.stop(signal.SIGKILL)
    server.again()
    message = talker.message(chat, started["answer"]["id"])
    assert message["state"] == "lost" and message["content"] and ENDLESS.startswith(message["content"])
    assert talker.message(chat, started["user"]["id"])["content"] == "say something endless"
    assert talker.http.get(f"/console/api/runs/{started['run']}/events").status_code == 404
    heard = talker.follow(talker.run(chat, None, started["user"]["id"])["run"])
    assert heard.text == ENDLESS


def eventually_saved(talker: Talker, chat: str, message: str) -> None:
    for _ in range(200):
        if talker.message(chat, message)["content"]:
            return
        time.sleep(0.02)
    raise AssertionError("nothing was saved")


@pytest.mark.heavy
def test_a_terminated_server_finishes_an_answer_that_nobody_reads(served: tuple[Served, Talker, str]):
    server, talker, name = served
    chat = talker.chat(name)
    started = talker.run(chat, "say something long")
    talker.follow(started["run"], until=after_some(50))
    talker.http.close()
    server.stop(signal.SIGTERM)
    server.again()
    with httpx2.Client(base_url=server.url) as client:
        found = client.get(f"/console/api/chats/{chat}/messages?ids={started['answer']['id']}").json()
    (message,) = found["messages"]
    assert message["state"] == "whole" and message["content"] == TEXT


@pytest.mark.heavy
def test_the_same_bits_come_again_under_load(served: tuple[Served, Talker, str]):
    server, talker, name = served
    chat, quiet = talker.chat(name), threading.Event()
    started = talker.run(chat, "hello", settings={"sampling": {"temperature": 1.3}})
    talker.follow(started["run"])

    def load() -> None:
        mine = Talker(server.url)
        body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "long"}]}
        while not quiet.is_set():
            mine.http.post("/v1/chat/completions", json={**body, "max_tokens": 200})

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        verdicts = [talker.again(chat, started["answer"]["id"]) for _ in range(5)]
    finally:
        quiet.set()
        for thread in threads:
            thread.join()
    assert all(said["equal"] for said in verdicts)


@pytest.mark.heavy
def test_a_changed_model_file_is_said_and_never_called_equal(
    serving: Callable[..., Served], model: Path, tmp_path: Path
):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(model.read_bytes())
    server = serving(str(mine))
    talker = Talker(server.url)
    names = [each["id"] for each in talker.http.get("/v1/models").json()["data"]]
    chat = talker.chat(next(name for name in names if "mine" in name))
    started = talker.run(chat, "hello")
    talker.follow(started["run"])
    assert talker.again(chat, started["answer"]["id"])["equal"]
    write_scripted(mine, {**SCRIPTS, "hello": "Hello! What should I say?"})
    os.utime(mine, (1, 1))
    said = talker.again(chat, started["answer"]["id"])
    assert not said["equal"] and "files" in said["changed"]
    talker.http.close()
