"""Answers that a client does not take: how much of them waits in the server, and who pays for it."""

from __future__ import annotations

import socket

import pytest

from freehold.serve.http.core.keys import Ring
from freehold.serve.http.core.limits import ServerLimits
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_chat import CHAT
from tests.http.test_door import bearer, key
from tests.http.test_streams import eventually, request

LONG = ("x" * 5_000 + " ") * 1_400  # 7 MB: more than the kernel's buffers of both sockets hold
PIECE = 64 << 10
ASKED = {"model": "fake:1b", "input": "hi"}


def greedy(server: Running, sent: bytes) -> socket.socket:
    """Send a request whose answer is not taken."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    sock.sendall(sent)
    return sock


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode()


def buffered(server: Running) -> list[int]:
    """Return the bytes that wait in each connection of the network."""
    door = server.doors._halves[0].config.http_protocol_class.door  # type: ignore[union-attr]
    return [one.transport.get_write_buffer_size() for one in door.all]


def test_long_answers_that_are_not_taken_are_their_caller_s(serving):
    limits = ServerLimits(caller_bytes=20_000_000)
    server = serving(Script(text=LONG, together=True), limits=limits, keys=Ring([key("ann"), key("bob")]))
    shared = server.doors.server.bodies
    ids = {
        name: server.client.post("/v1/responses", json=ASKED, headers=bearer(name)).json()["id"]
        for name in ("ann", "bob")
    }
    secret = f"Authorization: {bearer('ann')['Authorization']}\r\n"
    socks = [greedy(server, get(f"/v1/responses/{ids['ann']}", secret)) for _ in range(2)]
    assert eventually(lambda: shared.by_caller.get("key ann", 0) > 14_000_000)
    refused = server.client.get(f"/v1/responses/{ids['ann']}", headers=bearer("ann"))
    assert refused.status_code == 429 and "answers" in refused.json()["error"]["message"]
    assert server.client.get(f"/v1/responses/{ids['bob']}", headers=bearer("bob")).status_code == 200
    for sock in socks:
        sock.close()
    assert eventually(lambda: shared.held == 0)
    assert server.client.get(f"/v1/responses/{ids['ann']}", headers=bearer("ann")).status_code == 200


@pytest.mark.parametrize("path, body", [("/v1/responses", ASKED), ("/v1/chat/completions", CHAT)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_holds_two_pieces_of_an_answer(serving, path, body, stream):
    server = serving(Script(text=LONG), limits=ServerLimits(write_s=0.5))
    sock = greedy(server, request(path, {**body, "stream": stream}))
    seen: list[int] = []

    def over() -> bool:
        seen.extend(buffered(server))
        return not server.doors.server.requests

    assert eventually(lambda: bool(server.doors.server.requests)) and eventually(over)
    assert 0 < max(seen) <= 3 * PIECE
    sock.close()


def test_a_client_that_pipelines_and_takes_nothing_is_dropped(serving):
    server = serving(Script(text="x" * 300_000), limits=ServerLimits(write_s=0.3))
    path = f"/v1/responses/{server.client.post('/v1/responses', json=ASKED).json()['id']}"
    sock = greedy(server, get(path) * 30)
    assert eventually(lambda: bool(server.doors.server.requests))
    assert eventually(lambda: not server.doors.server.requests and len(buffered(server)) == 1)  # ours
    sock.close()
