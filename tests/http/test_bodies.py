"""What a body may hold, and what it may take from the others while it is parsed."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import threading
import tracemalloc
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from freehold.serve.http.app import routes
from freehold.serve.http.console.chats import IMPORTED
from freehold.serve.http.core import bodies
from freehold.serve.http.core.bodies import Bodies, Holding, body_pieces
from freehold.serve.http.core.call import endpoint_of
from freehold.serve.http.core.keys import Ring
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.longjson import BodyStructure, structure_of, weight
from freehold.serve.http.core.problems import Refused
from tests.http.conftest import JSON
from tests.http.fakes import Script
from tests.http.test_chat import CHAT
from tests.http.test_door import bearer, key
from tests.http.test_streams import connect, eventually, until

URL = "/v1/chat/completions"
MOST = ServerLimits()
READS_JSON = [
    (next(iter(route.methods or ())), route.path)
    for route in routes()
    if endpoint_of(route).request is not None and not route.path.startswith("/v1/audio/")  # which read a form
]


def lists(n: int) -> bytes:
    return b"[" + b",".join([b"[]"] * n) + b"]"


def names(n: int) -> bytes:
    return b"{" + b",".join(b'"k%d":1' % i for i in range(n)) + b"}"


def numbers(n: int) -> bytes:
    return b"[" + b",".join([b"1"] * n) + b"]"


# Structure.


@pytest.mark.parametrize("method, path", READS_JSON)
def test_a_body_of_lists_is_refused_by_every_route_before_it_is_parsed(serving, monkeypatch, method, path):
    parsed: list[bytes] = []
    monkeypatch.setattr(bodies, "parse", parsed.append)
    most = IMPORTED["body_containers"] if path == "/console/api/import" else MOST.body_containers
    body = b'{"model": "fake:1b", "x": ' + lists(most) + b"}"
    answer = serving().admin.request(method, path, content=body, headers=JSON)
    assert answer.status_code == 413 and f"{most:,} lists and objects" in answer.text, answer.text
    assert not parsed


@pytest.mark.parametrize(
    "value, what",
    [
        (lists(4_000_000), "lists and objects"),
        (names(1_000_000), "names in objects"),
        (numbers(2_000_000), "values in lists"),
        (b"[" + b",".join([b'",[:"'] * 1_100_000) + b"]", "values in lists"),
    ],
    ids=["lists", "names", "numbers", "texts"],
)
def test_long_bodies_of_many_values_are_refused_by_count(serving, value, what):
    answer = serving().client.post(URL, content=b'{"x":' + value + b"}", headers=JSON)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_complex"
    assert what in answer.json()["error"]["message"]


def test_punctuation_in_texts_counts_for_nothing(serving):
    code = 'a = {"k": [1, 2, 3]}\\n' * 100_000
    chat = {**CHAT, "messages": [{"role": "user", "content": code}]}
    assert serving().client.post("/v1/messages/count_tokens", json=chat).status_code == 200


def test_a_million_ids_are_within_the_limits():
    body = b'{"model": "m", "prompt": ' + numbers(1 << 20) + b"}"
    assert bodies.weigh(body, MOST) < MOST.caller_bytes


def true_structure(value: Any) -> BodyStructure:
    found = [0, 0, 0]
    left = [value]
    while left:
        here = left.pop()
        if isinstance(here, dict | list):
            found[0] += 1
            found[1] += len(here) if isinstance(here, dict) else 0
            left += here.values() if isinstance(here, dict) else here
            found[2] += max(len(here) - 1, 0)
    return BodyStructure(found[0], found[1], found[2] + found[0])


def made(rng: random.Random, depth: int) -> Any:
    text = "".join(rng.choice('a,:[]{}"\\\n\té✗😀') for _ in range(rng.randrange(9)))
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([text, 1, 2.5, None, True])
    if rng.random() < 0.5:
        return [made(rng, depth - 1) for _ in range(rng.randrange(6))]
    return {f"{text}{i}": made(rng, depth - 1) for i in range(rng.randrange(6))}


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("ascii", [True, False])
def test_a_count_is_that_of_what_is_parsed(seed, ascii):
    value = made(random.Random(seed), 5)
    body = json.dumps(value, ensure_ascii=ascii).encode()
    counted = structure_of(body)
    assert replace(counted, escapes=0, wide=False) == true_structure(value)
    assert counted.escapes == body.count(b"\\")
    assert counted.wide == (not body.isascii() or re.search(rb"(?<!\\)(?:\\\\)*\\u", body) is not None)


@pytest.mark.parametrize("body", [b'"', b'{"a', b'"' * 1001, b'"\\' * 500, b"\\" * 99, b'["a",\xff"', b""])
def test_counting_ends_on_what_is_no_json(body):
    assert structure_of(body + b"[" * 3 + b"," * 5).containers <= 4


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":' + lists(20_000) + b"}",
        b'{"x":[' + b",".join([b'{"a":1}'] * 20_000) + b"]}",
        b'{"x":' + names(50_000) + b"}",
        b'{"x":[' + b",".join(b"%d" % (i * 1000) for i in range(100_000)) + b"]}",
        b'{"x":[' + b",".join([b'"some text"'] * 20_000) + b"]}",
        '{{"x":"{}😀"}}'.format("a" * 500_000).encode(),
        b'{"x":"' + b"a" * 500_000 + b'\\ud83d\\ude00"}',
    ],
    ids=["lists", "objects", "names", "numbers", "texts", "wide", "escaped"],
)
def test_a_body_is_charged_with_at_least_what_it_takes(body):
    tracemalloc.start()
    value = msgspec.json.decode(body)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert value and taken < weight(body, structure_of(body)) < 8 * taken + 8 * len(body)


# The loop.


def test_the_server_answers_while_a_long_body_is_parsed(serving, monkeypatch):
    server, parse = serving(), bodies.parse
    begun, go_on = threading.Event(), threading.Event()

    def slow(body: bytes) -> dict[str, Any]:
        if len(body) > MOST.small_bytes:
            begun.set()
            assert go_on.wait(60)
        return parse(body)

    monkeypatch.setattr(bodies, "parse", slow)
    long = {**CHAT, "ignored": "x" * MOST.small_bytes}
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(server.admin.post(URL, json=long).status_code))
    asking.start()
    try:
        assert begun.wait(60)
        assert server.client.get("/health").status_code == 200
        assert server.client.post(URL, json=CHAT).status_code == 200
    finally:
        go_on.set()
        asking.join(60)
    assert answers == [200]


def test_one_body_of_a_caller_is_parsed_at_a_time():
    async def main() -> list[str]:
        shared, order = Bodies(), []

        async def take(caller: str, name: str, gate: asyncio.Event) -> None:
            async with shared.turn(caller, 1):
                order.append(name)
                await gate.wait()

        first, others = asyncio.Event(), asyncio.Event()
        others.set()
        tasks = [asyncio.create_task(take("ann", "ann 1", first))]
        await asyncio.sleep(0)
        tasks += [
            asyncio.create_task(take(who, what, others)) for who, what in (("ann", "ann 2"), ("bob", "bob 1"))
        ]
        for _ in range(20):
            await asyncio.sleep(0)
        seen = list(order)
        first.set()
        await asyncio.gather(*tasks)
        shared.close()
        return seen

    assert asyncio.run(main()) == ["ann 1", "bob 1"]


# Memory.


def test_a_caller_holds_a_part_of_what_all_may():
    limits = ServerLimits(bodies_bytes=300, caller_bytes=200)
    shared = Bodies()
    ann, again, bob = (Holding(shared, who, limits) for who in ("ann", "ann", "bob"))
    ann.set(150, 10)
    with pytest.raises(Refused, match="your requests and their answers hold more than 200") as told:
        again.set(100, 10)
    assert told.value.status == 429
    again.close()
    with pytest.raises(Refused, match="hold more than 300") as told:
        bob.set(190, 10)
    assert told.value.status == 503
    bob.set(9, 10)
    for each in (ann, bob):
        each.close()
    assert shared.held == 0 and not shared.by_caller


def test_a_body_is_charged_until_its_request_is_answered(serving):
    server = serving(Script(text="word " * 500, delay=0.05), keys=Ring([key("ann")]))
    shared = server.doors.server.bodies
    chat = {**CHAT, "stream": True, "ignored": "x" * 100_000}
    with server.client.stream("POST", URL, json=chat, headers=bearer("ann")) as answer:
        pieces = answer.iter_bytes()  # kept: one that is let go of closes the answer
        next(pieces)
        assert 200_000 < shared.by_caller["key ann"] == shared.held < 500_000
    assert eventually(lambda: shared.held == 0 and not shared.by_caller)


# What it is called.


@pytest.mark.parametrize("method, path", READS_JSON)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_is_not_called_json_is_refused_in_the_protocol_s_shape(serving, method, path, kind):
    headers = {"Content-Type": kind} if kind else {}
    answer = serving().admin.request(method, path, content=b'{"model": "fake:1b"}', headers=headers)
    assert answer.status_code == 415
    error = answer.json()["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert "Content-Type: application/json" in message
    assert ("type" in answer.json()) == path.startswith("/v1/messages")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"]
)
def test_json_by_any_of_its_names_is_taken(serving, kind):
    body = json.dumps(CHAT).encode()
    assert serving().client.post(URL, content=body, headers={"Content-Type": kind}).status_code == 200


def test_a_compressed_body_is_called_that(serving):
    body = gzip.compress(b'{"x":' + b" " * (1 << 20) + b"1}")
    answer = serving().client.post(URL, content=body, headers={**JSON, "Content-Encoding": "gzip"})
    assert answer.status_code == 415 and "'gzip'" in answer.json()["error"]["message"]
    upload = {"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"}
    assert serving().client.post("/v1/files", content=body, headers=upload).status_code == 415


def test_an_upload_that_trickles_is_given_up():
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def main() -> None:
        async for _ in body_pieces(receive, {}, ServerLimits(body_s=0.1, upload_rate=1000)):
            pass

    with pytest.raises(Refused, match="slower than 1,000 bytes a second"):
        asyncio.run(main())


def test_a_line_of_a_batch_has_the_limits_of_a_body(serving, tmp_path):
    from freehold.serve.http.batches.record import check_lines

    line = b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"model":"m","x":%b}}\n'
    (tmp_path / "lines").write_bytes(line % (1, b"[]") + line % (2, lists(MOST.body_containers)))
    checked = check_lines(tmp_path / "lines", "/v1/completions")
    (wrong,) = checked.errors
    assert (wrong.code, wrong.line) == ("body_too_complex", 2) and "lists and objects" in wrong.message


def test_a_refused_body_leaves_the_connection_to_others(serving):
    server = serving()
    with connect(server) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
            b"Content-Length: 10000000\r\n\r\n" + b"x" * 1000
        )
        assert b" 415 " in until(sock, b"}}")
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "deep, what", [(lists(70_000), "lists and objects"), (numbers(300_000), "values in lists")]
)
def test_one_value_deep_in_an_import_holds_no_more_than_a_body(serving, deep, what):
    row = b'{"id": "a", "parent": null, "role": "user", "content": "x", "receipt": {"x": %b, "y": "%b"}}'
    body = b'{"chat": {"messages": [' + row % (deep, b"y" * (1 << 18)) + b"]}}"
    answer = serving().admin.post("/console/api/import", content=body, headers=JSON)
    assert answer.status_code == 413 and what in answer.json()["error"]["message"], answer.text
