"""Routes that count tokens or embed, as a key sees them: booked, bounded, and booked though the client left."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from freehold.base.errors import ContextOverflow, Overloaded
from freehold.serve.http.core.accounts import COUNTED_PER_TOKEN, MAX_COUNTING
from freehold.serve.http.core.keys import Ring
from tests.http.fakes import Script, failing
from tests.http.test_door import bearer, key
from tests.http.test_streams import connect, eventually, request

TEXT = "ab " * 400  # 1,200 characters: some 300 tokens, three of a budget
CHAT = [{"role": "user", "content": TEXT}]
COUNTING = {
    "/tokenize": {"prompt": TEXT},
    "/tokenize of a chat": {"messages": CHAT},
    "/detokenize": {"tokens": [1] * 1200},
    "/v1/messages/count_tokens": {"messages": CHAT},
}


@pytest.mark.parametrize("route", COUNTING)
def test_counted_tokens_cost_a_hundredth_of_a_budget(serving, route):
    server = serving(keys=Ring([key("ann", tokens="3/day"), key("bob", tokens="4/day")]))
    assert len(TEXT) == 3 * 4 * COUNTED_PER_TOKEN
    body = {"model": "fake:1b", **COUNTING[route]}
    path = route.split()[0]
    for name, again in (("ann", 429), ("bob", 200)):
        first = server.client.post(path, json=body, headers=bearer(name))
        assert first.status_code == 200, first.text
        second = server.client.post(path, json=body, headers=bearer(name))
        assert second.status_code == again, second.text
    assert "insufficient_quota" in server.client.post(path, json=body, headers=bearer("ann")).text


@pytest.mark.parametrize("route", COUNTING)
def test_counted_text_comes_with_its_client(serving, route):
    server = serving(keys=Ring([key("ann")]))
    body = {"model": "fake:1b", **COUNTING[route]}
    assert server.client.post(route.split()[0], json=body, headers=bearer("ann")).status_code == 200
    assert server.models.served["fake:1b"].counters == ["key ann"]


@pytest.mark.parametrize(
    "path, body",
    [
        ("/tokenize", {"prompt": TEXT}),
        ("/v1/embeddings", {"input": "one two three four"}),
        ("/rerank", {"query": "one two", "documents": ["three four"]}),
    ],
)
def test_clients_that_leave_are_booked(serving, path, body):
    server = serving(Script(count_delay=30), keys=Ring([key("ann", tokens="1k/day")]))
    header = f"Authorization: {bearer('ann')['Authorization']}\r\n"
    with connect(server) as sock:
        sock.sendall(request(path, {"model": "fake:1b", **body}, header))
        assert eventually(lambda: bool(server.doors.server.calls))
    assert eventually(lambda: not server.doors.server.calls)
    account = server.doors.server.accounts
    assert account.spent("ann") >= 3 and not account._reserved


def test_one_key_counts_so_much_at_a_time_and_keeps_no_other_waiting(serving):
    script = Script(gate=threading.Event())
    server = serving(script, keys=Ring([key("ann"), key("bob")]))
    body = {"model": "fake:1b", "prompt": "a"}

    def ask(name: str):
        return server.client.post("/tokenize", json=body, headers=bearer(name))

    with ThreadPoolExecutor(MAX_COUNTING + 5) as pool:
        asked = [pool.submit(ask, name) for name in ["ann"] * (MAX_COUNTING + 4) + ["bob"]]
        assert eventually(lambda: sum(each.done() for each in asked) == 4)
        script.gate.set()  # type: ignore[union-attr]
        answers = [each.result() for each in asked]
    assert [a.status_code for a in answers].count(429) == 4 and answers[-1].status_code == 200
    refused = next(a for a in answers if a.status_code == 429)
    assert refused.headers["retry-after"] == "2" and refused.json()["error"]["code"] == "too_many_counts"


@pytest.mark.parametrize("path, body", [("/v1/embeddings", {"input": "a"}), ("/api/embed", {"input": "a"})])
def test_full_queue_says_when_to_come_again(serving, path, body):
    full = Overloaded("256 requests wait to be embedded by fake:1b", "ask again in a moment", 3.2)
    answer = serving(failing("embed", full)).client.post(path, json={"model": "fake:1b", **body})
    assert answer.status_code == (503 if path.startswith("/api") else 429)
    assert answer.headers["retry-after"] == "4"


def test_text_that_is_too_long_is_the_callers_mistake(serving):
    said = ContextOverflow("the text has 9 characters; the context of 1 tokens holds 8 at most", "split it")
    answer = serving(failing("embed", said)).client.post(
        "/v1/embeddings", json={"model": "fake:1b", "input": "a"}
    )
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert "split it" in answer.json()["error"]["message"]
