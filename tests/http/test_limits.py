"""What one client may take: bytes, depth, seconds, connections."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest

from freehold.serve.http.core import computing
from freehold.serve.http.core.limits import MAX_DEPTH, ServerLimits
from tests.http.conftest import JSON
from tests.http.test_chat import CHAT
from tests.http.test_streams import connect, eventually, request, until

URL = "/v1/chat/completions"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"a": 1} x',
        b'{"model": "\\ud800"}',
    ],
)
def test_what_is_no_json_object_is_refused(serving, body):
    answer = serving().client.post(URL, content=body, headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("rest", [b"", b" and more", b"\\u0041"])
def test_half_a_character_is_called_that(serving, rest):
    answer = serving().client.post(URL, content=b'{"model": "\\ud800' + rest + b'"}', headers=JSON)
    assert answer.status_code == 400 and "half a surrogate pair" in answer.json()["error"]["message"]


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5000, 60_000])
@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused(serving, depth, opening, closing):
    body = '{"x":' + opening * depth + "1" + closing * depth + "}"
    answer = serving().client.post(URL, content=body, headers=JSON)
    assert answer.status_code == 400 and "deeper" in answer.json()["error"]["message"]


def test_broad_bodies_pass_the_depth_check(serving):
    chat = [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 200
    assert serving().client.post(URL, json={**CHAT, "messages": chat}).status_code == 200


def test_a_body_too_long_is_refused_by_its_header_before_it_is_read(serving):
    server = serving(limits=ServerLimits(body_bytes=1000))
    with connect(server) as sock:
        sock.sendall(POST + b"Content-Length: 1001\r\n\r\n")
        assert b" 413 " in until(sock, b"}}")
    with connect(server) as sock:
        huge = b"9" * 30
        sock.sendall(POST + b"Content-Length: " + huge + b"\r\n\r\n")
        assert sock.recv(9999)[9:10] == b"4"


def test_a_chunked_body_too_long_is_refused_by_its_bytes(serving):
    server = serving(limits=ServerLimits(body_bytes=1000))
    with connect(server) as sock:
        sock.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            sock.sendall(b"190\r\n" + b"x" * 400 + b"\r\n")
        assert b" 413 " in until(sock, b"}}")


def test_a_body_that_trickles_is_given_up(serving):
    server = serving(limits=ServerLimits(body_s=0.3))
    with connect(server) as sock:
        sock.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        assert b" 408 " in until(sock, b"}}")


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: loc"])
def test_headers_that_do_not_come_close_the_connection(serving, sent):
    server = serving(limits=ServerLimits(header_s=0.3))
    with connect(server) as sock:
        sock.sendall(sent)
        start = time.monotonic()
        with suppress(ConnectionResetError):
            assert sock.recv(100) == b""
        assert time.monotonic() - start < 10


def test_long_bodies_on_their_way_hold_a_bounded_sum_and_short_ones_pass(serving):
    server = serving(limits=ServerLimits(body_bytes=4000, bodies_bytes=3700, small_bytes=2000))
    head = POST + b"Content-Length: 4000\r\n\r\n"
    bodies = server.doors.server.bodies
    with connect(server) as first, connect(server) as second:
        first.sendall(head + b"x" * 3600)
        assert eventually(lambda: bodies.held == 3600)
        second.sendall(head + b"x" * 3600)
        assert b" 503 " in until(second, b"}}")
        assert server.client.post(URL, json=CHAT).status_code == 200
    assert eventually(lambda: bodies.held == 0)


def test_a_body_cut_off_ends_quietly(serving):
    server = serving()
    sock = connect(server)
    sock.sendall(request(URL, CHAT)[:-10])
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    assert server.client.get("/version").status_code == 200
    assert not server.models.served["fake:1b"].jobs


@pytest.mark.parametrize(
    "url, body",
    [
        (URL, {**CHAT, "logprobs": True, "top_logprobs": 20, "n": 2, "max_tokens": 400}),
        (URL, {**CHAT, "logprobs": True, "top_logprobs": 20, "n": 1}),  # up to the end of the context
        ("/v1/completions", {"model": "fake:1b", "prompt": ["a"] * 8, "logprobs": 20, "max_tokens": 100}),
        ("/v1/completions", {"model": "fake:1b", "prompt": ["a " * 60] * 9, "logprobs": 20, "echo": True}),
    ],
)
def test_log_probabilities_of_a_whole_answer_have_a_joint_limit(serving, monkeypatch, url, body):
    monkeypatch.setattr(computing, "MAX_SCORES", 10_000)
    server = serving()
    answer = server.client.post(url, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "too_many_logprobs"
    assert "10,000" in answer.json()["error"]["message"] and eventually(lambda: not server.models.in_flight)
    less = {"top_logprobs": 0, "n": 1} if url == URL else {"logprobs": 0, "max_tokens": 5}
    assert server.client.post(url, json={**body, **less}).status_code == 200
