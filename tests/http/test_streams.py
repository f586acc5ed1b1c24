"""What happens to a stream over time: comments, disconnects at every phase, readers that take nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest

from freehold.base.errors import CapacityExceeded
from freehold.serve.http.core import answering
from freehold.serve.http.core.answering import COMMENT, CONTENT_TYPE, EventStream
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.openai.shape import DONE
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_chat import CHAT, events

URL = "/v1/chat/completions"


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def request(path: str, body: object, headers: str = "") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {len(data)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + data


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def until(sock: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        got = sock.recv(65536)
        if not got:
            break
        data += got
    return data


def test_a_comment_that_waited_for_the_last_event_is_not_sent():
    sent: list[bytes] = []

    async def body(data: bytes, *, more: bool) -> None:
        sent.append(data)
        call.complete = not more
        await asyncio.sleep(0)

    server = SimpleNamespace(keep_alive_s=10, limits=ServerLimits(), metrics=SimpleNamespace(streams=0))
    call = SimpleNamespace(server=server, status=200, complete=False, body=body)

    async def main() -> None:
        async with EventStream(cast(HttpCall, call)) as stream:
            await asyncio.gather(stream.send(DONE, more=False), stream.send(COMMENT))

    asyncio.run(main())
    assert sent == [DONE]


@pytest.mark.parametrize(("kind", "told"), [(CONTENT_TYPE, True), (b"application/x-ndjson", False)])
def test_comments_tell_how_much_of_the_prompt_is_read(
    monkeypatch: pytest.MonkeyPatch, kind: bytes, told: bool
):
    monkeypatch.setattr(answering, "PREFILL_S", 0.001)
    sent: list[bytes] = []
    reads = iter([(10, 100), (90, 100)])
    asked = asyncio.Event()

    def prefill() -> tuple[int, int] | None:
        found = next(reads, None)
        if found is None:
            asked.set()
        return found

    async def body(data: bytes, *, more: bool) -> None:
        sent.append(data)
        call.taken_at = time.monotonic() - 1

    server = SimpleNamespace(keep_alive_s=10, limits=ServerLimits(), metrics=SimpleNamespace(streams=0))
    call = SimpleNamespace(
        server=server, status=200, complete=False, body=body, taken_at=time.monotonic() - 1
    )

    async def main() -> None:
        async with EventStream(cast(HttpCall, call), kind, prefill=prefill):
            await asyncio.wait_for(asked.wait(), 60) if told else await asyncio.sleep(0.01)

    asyncio.run(main())
    assert sent == ([b": prefill 10 100\n\n", b": prefill 90 100\n\n"] if told else [])


@pytest.mark.parametrize("phase", ["use_delay", "start_delay", "delay"])
def test_comments_fill_every_silence(serving, phase):
    server = serving(Script(text="a b", **{phase: 0.5}), keep_alive_s=0.1)
    answer = server.client.post(URL, json={**CHAT, "stream": True})
    assert answer.status_code == 200 and answer.text.count(": keep-alive\n\n") >= 3
    pieces = [e["choices"][0]["delta"].get("content", "") for e in events(answer.text)]
    assert "".join(pieces) == "a b"


def test_an_error_after_a_comment_is_an_event(serving):
    script = Script(use_delay=0.4, fail=CapacityExceeded("needs 9 GB, 3 are free"), fail_at="use")
    answer = serving(script, keep_alive_s=0.1).client.post(URL, json={**CHAT, "stream": True})
    assert answer.status_code == 200
    assert events(answer.text)[-1]["error"]["code"] == "capacity_exceeded"


@pytest.mark.parametrize("phase", ["use_delay", "start_delay", "delay"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_job_at_once(serving, phase, stream):
    server = serving(Script(text="a b c", **{phase: 30.0}))
    served = server.models.served["fake:1b"]
    reasons = server.doors.server.metrics.of("fake:1b").reasons
    before = reasons["abort"]
    sock = connect(server)
    sock.sendall(request(URL, {**CHAT, "stream": stream}))
    assert eventually(lambda: bool(server.doors.server.calls))
    if phase != "use_delay":
        assert eventually(lambda: bool(served.jobs))
    if phase == "delay":
        assert eventually(lambda: server.models.in_flight == 1)
    sock.close()
    assert eventually(lambda: not server.doors.server.calls)
    assert server.models.in_flight == 0 and all(s.closed for s in served.streams)
    assert reasons["abort"] - before == (phase != "use_delay")
    assert server.client.get("/health").status_code == 200


def test_a_client_that_goes_frees_all_its_prompts(serving):
    server = serving(Script(text="a b c", delay=30.0))
    sock = connect(server)
    sock.sendall(request("/v1/completions", {"model": "fake:1b", "prompt": ["a", "b", "c", "d"]}))
    assert eventually(lambda: server.models.in_flight == 4)
    sock.close()
    assert eventually(lambda: server.models.in_flight == 0)


def test_a_client_that_goes_midstream_is_noticed(serving):
    server = serving(Script(text="a " * 10_000, delay=0.001))
    sock = connect(server)
    sock.sendall(request(URL, {**CHAT, "stream": True}))
    until(sock, b'"content":" a"')
    sock.close()
    assert eventually(lambda: server.models.in_flight == 0)
    assert not server.models.served["fake:1b"].streams[-1].ended


def test_a_reader_that_takes_nothing_is_dropped_and_holds_up_nobody(serving):
    long = ("x" * 5_000 + " ") * 4_000  # more than the buffers of both sockets hold
    server = serving(Script(text=long), keep_alive_s=0.1, limits=ServerLimits(write_s=0.3))
    served = server.models.served["fake:1b"]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(request(URL, {**CHAT, "stream": True}))
    assert eventually(lambda: bool(served.streams))
    assert server.client.get("/version").status_code == 200
    assert eventually(lambda: server.models.in_flight == 0)
    assert eventually(lambda: not server.doors.server.calls) and not served.streams[-1].ended
    sock.close()


def test_a_connection_is_used_again_after_a_stream(serving):
    server = serving()
    with connect(server) as sock:
        for _ in range(3):
            sock.sendall(request(URL, {**CHAT, "stream": True}))
            assert b"200 OK" in until(sock, b"0\r\n\r\n")


def test_pipelined_requests_are_answered_in_order(serving):
    server = serving()
    with connect(server) as sock:
        both = request(URL, {**CHAT, "stream": True}) + b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        sock.sendall(both)
        data = until(sock, b'"version"')
    assert data.index(b"[DONE]") < data.index(b'"version"')


def test_a_connection_has_a_bounded_number_of_requests_ahead_of_their_answers(serving):
    server = serving(Script(text="a b", gate=(gate := threading.Event())))
    with connect(server) as sock:
        sock.sendall(request(URL, CHAT) + b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 5000)
        with suppress(ConnectionResetError):  # it closes with most of them unread
            assert b"pipelined_too_many" in until(sock, b"never")
    assert eventually(lambda: not server.doors.server.requests) and not gate.is_set()


def test_many_streams_are_open_at_once(serving):
    script = Script(text="a b", gate=threading.Event())
    server = serving(script)
    socks = [connect(server) for _ in range(100)]
    for sock in socks:
        sock.sendall(request(URL, {**CHAT, "stream": True}))
    assert eventually(lambda: server.models.in_flight == 100)
    assert b"freehold_streams_open 100.0" in server.client.get("/metrics").content
    script.gate.set()
    for sock in socks:
        assert b"[DONE]" in until(sock, b"0\r\n\r\n")
        sock.close()
    assert server.models.in_flight == 0
