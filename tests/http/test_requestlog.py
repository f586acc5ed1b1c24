"""The line that each request leaves in the log: what it names, what it never shows, and at which level."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from freehold.serve.http.core.call import RequestWork
from freehold.serve.http.core.gate import RequestLine, _plain
from freehold.serve.http.core.keys import Ring
from tests.http.fakes import Script, failing
from tests.http.test_door import bearer, key
from tests.http.test_streams import connect, eventually, request

URL = "/v1/chat/completions"
PROMPT, ANSWER = "a sesame of a prompt", "an oyster of an answer"
CHAT = {"model": "fake:1b", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 50}


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.DEBUG, "freehold.requests")

    def lines(count: int, level: int = logging.INFO) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            records = [r for r in caplog.records if r.name == "freehold.requests" and r.levelno >= level]
            return [r.args[0].fields for r in records]

        assert eventually(lambda: len(found()) >= count)
        return found()

    return lines


ROUTES = {
    URL: CHAT,
    "/v1/messages": CHAT,
    "/api/chat": {"model": "fake:1b", "messages": CHAT["messages"]},
    "/api/generate": {"model": "fake:1b", "prompt": PROMPT},
    "/v1/completions": {"model": "fake:1b", "prompt": PROMPT, "max_tokens": 50},
    "/v1/responses": {"model": "fake:1b", "input": PROMPT},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_answer_leaves_its_key_model_tokens_and_times(serving, logged, caplog, route, stream):
    server = serving(Script(text=ANSWER, delay=0.002, cached=2), keys=Ring([key("ann")]))
    asked = {**ROUTES[route], "stream": stream}
    answer = server.client.post(route, json=asked, headers={**bearer("ann"), "x-request-id": "r1"})
    assert answer.status_code == 200, answer.text
    (line,) = logged(1)
    protocol = {"/v1/messages": "anthropic", "/api": "ollama"}
    assert line["protocol"] == next((p for start, p in protocol.items() if route.startswith(start)), "openai")
    assert (line["request_id"], line["key"], line["method"], line["route"]) == ("r1", "ann", "POST", route)
    assert (line["model"], line["status"], line["code"], line["whole"]) == ("fake:1b", 200, "", True)
    assert (line["prompt_tokens"], line["cached_tokens"], line["answer_tokens"]) == (5, 2, 5)
    assert 0 < line["ttft_s"] < line["duration_s"] and line["tok_s"] > 0
    shown = "".join(f"{r.getMessage()} {r.__dict__}" for r in caplog.records if r.name == "freehold.requests")
    for secret in ("sesame", "oyster", bearer("ann")["Authorization"].split()[1]):
        assert secret not in shown
    assert " ann POST " in shown and "prompt 5 (cached 2) completion 5 first 0." in shown


@pytest.mark.parametrize(
    "route, body, tokens",
    [
        ("/v1/embeddings", {"input": ["one two", "three"]}, 3),
        ("/api/embed", {"input": "one two"}, 2),
        ("/rerank", {"query": "one", "documents": ["two three"]}, 3),
        ("/tokenize", {"prompt": "one two"}, 2),
        ("/v1/messages/count_tokens", {"messages": CHAT["messages"]}, 5),
    ],
)
def test_what_only_reads_leaves_what_it_read(serving, logged, route, body, tokens):
    assert serving().client.post(route, json={"model": "fake:1b", **body}).status_code == 200
    (line,) = logged(1)
    assert (line["model"], line["prompt_tokens"], line["answer_tokens"]) == ("fake:1b", tokens, 0)
    assert line["ttft_s"] is line["tok_s"] is None


def test_refusals_failures_and_polls_have_their_levels(serving, logged, caplog):
    server = serving(failing("start", RuntimeError("broken")))
    client = server.client
    client.get("/health")
    client.post(URL, json={**CHAT, "model": "none"})
    client.post(URL, json=CHAT)
    server.doors.server.health.preload["m"] = "loading"
    client.get("/ready")
    lines = logged(4, logging.DEBUG)
    assert [(n["status"], n["code"]) for n in lines] == [
        (200, ""),
        (404, "model_not_found"),
        (500, "internal_error"),
        (503, ""),  # a loading model is not a failure, and is asked for again and again
    ]
    levels = [r.levelno for r in caplog.records if r.name == "freehold.requests"]
    assert levels == [logging.DEBUG, logging.INFO, logging.WARNING, logging.DEBUG]


def test_answer_that_was_cut_off_says_so(serving, logged):
    server = serving(Script(text="word " * 1000, delay=0.005))
    with connect(server) as sock:
        sock.sendall(request(URL, {**CHAT, "stream": True, "max_tokens": 900}))
        sock.recv(100)
    (line,) = logged(1)
    assert not line["whole"] and 0 < line["answer_tokens"] < 900


@pytest.mark.parametrize("name", ["evil\nline", "\x1b[31mred", "two words", "x" * 5000, "\u202ereversed"])
def test_name_from_a_client_breaks_no_line(name):
    shown = _plain(name)
    assert shown.isprintable() and len(shown) < 200
    fields = {**_fields(), "model": shown}
    assert "\n" not in str(RequestLine(0.0, fields))


def _fields() -> dict[str, Any]:
    numbers = ("prompt_tokens", "cached_tokens", "answer_tokens", "status")
    return {
        **dict.fromkeys(["key", "method", "route", "model", "code"], "x"),
        **dict.fromkeys(numbers, 1),
        "ttft_s": None,
        "tok_s": None,
        "duration_s": 1.0,
        "whole": True,
    }


def test_speed_counts_tokens_after_the_first_of_each_answer():
    work = RequestWork(answers=2)
    for at in (1.0, 1.0, 2.0, 2.0):
        work.came(1, at)
    assert work.tok_s == 2.0 and work.first_s == 1.0
    assert RequestWork(answers=1).tok_s is None
