"""How many connections there may be, whose go first, what a head may hold; and requests of one caller."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack, closing, suppress

import pytest

from freehold.base.errors import UsageError
from freehold.serve.http import serve
from freehold.serve.http.core.keys import Ring
from freehold.serve.http.core.limits import ServerLimits, one_address
from tests.http.conftest import TOKEN, Running
from tests.http.fakes import Script
from tests.http.test_chat import CHAT
from tests.http.test_door import bearer, key
from tests.http.test_streams import connect, eventually, request, until

URL = "/v1/chat/completions"
SLOW = Script(text="word " * 500, delay=0.05)
STREAM = {**CHAT, "stream": True}
GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect_from(server: Running, address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60, source_address=(address, 0))


def open_connections(server: Running) -> int:
    return sum(len(half.server_state.connections) for half in server.doors._halves)


def ask(sock: socket.socket, path: bytes = b"/version") -> bytes:
    sock.sendall(GET % path)
    return until(sock, b"}")


def busy(server: Running, held: ExitStack, n: int, headers: str = "") -> list[socket.socket]:
    """Begin `n` streams."""
    made = [held.enter_context(closing(connect(server))) for _ in range(n)]
    for sock in made:
        sock.sendall(request(URL, STREAM, headers))
        assert b" 200 " in until(sock, b"data:")
    return made


# Connections.


def test_an_idle_connection_gives_way_to_a_newer_one(serving):
    server = serving(limits=ServerLimits(connections=3))
    with ExitStack() as held:
        first, second, third = (held.enter_context(closing(connect(server))) for _ in range(3))
        assert eventually(lambda: open_connections(server) == 3)
        assert b" 200 " in ask(first)  # so the second is the one that is idle for longest
        with closing(connect(server)) as newer:
            assert b" 200 " in ask(newer)
            assert second.recv(100) == b""
            assert b" 200 " in ask(first) and b" 200 " in ask(third)


def test_one_that_had_begun_to_ask_is_told_why_it_goes(serving):
    server = serving(limits=ServerLimits(connections=1))
    with closing(connect(server)) as slow:
        slow.sendall(b"GET /version HTTP/1.1\r\nHost: loc")
        assert eventually(lambda: open_connections(server) == 1)
        time.sleep(0.05)
        with closing(connect(server)) as newer:
            assert b" 200 " in ask(newer)
            assert b"connections_too_many" in until(slow, b"}}")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_where_all_are_at_work_one_more_may_ask_for_health_alone(serving, path):
    server = serving(SLOW, limits=ServerLimits(connections=2, held_back=2))
    with ExitStack() as held:
        first, _ = busy(server, held, 2)
        with closing(connect(server)) as probe, closing(connect(server)) as other:
            assert (
                b'"ok"' in ask(probe, b"/health") and probe.recv(100) == b""
            )  # it is closed behind the answer
            other.sendall(request(path, CHAT))
            head, _, body = until(other, b"\n\n").partition(b"\r\n\r\n")
            assert b" 503 " in head and b"retry-after: 1" in head
            assert b"too many connections" in body and isinstance(json.loads(body)["error"], str) == (
                path == "/api/chat"
            )
        first.close()
        assert eventually(lambda: open_connections(server) == 1)
        with closing(connect(server)) as again:
            assert b" 200 " in ask(again)


def test_beyond_what_is_held_back_the_answer_comes_at_once(serving):
    server = serving(SLOW, limits=ServerLimits(connections=1, held_back=1))
    with ExitStack() as held:
        busy(server, held, 1)
        held.enter_context(closing(connect(server)))
        assert eventually(lambda: open_connections(server) == 2)
        # The one that is held back is idle, and gives way; a second one at work does not.
        spare = held.enter_context(closing(connect(server)))
        assert b'"ok"' in ask(spare, b"/health")


def test_many_silent_connections_of_one_address_shut_nobody_out(serving):
    server = serving(limits=ServerLimits(connections=100, address_connections=60))
    with ExitStack() as held:
        for _ in range(300):
            held.enter_context(closing(connect_from(server, "127.0.0.2")))
        for address in ("127.0.0.1", "127.0.0.2"):
            with closing(connect_from(server, address)) as sock:
                assert b'"ok"' in ask(sock, b"/health")
            with closing(connect_from(server, address)) as sock:
                sock.sendall(request(URL, CHAT))
                assert b" 200 " in until(sock, b"}}")
        assert eventually(lambda: open_connections(server) <= 60)


def test_beyond_an_address_s_limit_its_own_oldest_go(serving):
    server = serving(limits=ServerLimits(connections=100, address_connections=3))
    with ExitStack() as held:
        other = held.enter_context(closing(connect_from(server, "127.0.0.3")))
        assert b" 200 " in ask(other)
        mine = [held.enter_context(closing(connect_from(server, "127.0.0.2"))) for _ in range(6)]
        assert eventually(lambda: open_connections(server) == 4)
        assert [sock.recv(10) for sock in mine[:3]] == [b""] * 3
        assert b" 200 " in ask(mine[-1]) and b" 200 " in ask(other)


@pytest.mark.parametrize(
    "host, one",
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_of_ipv6_a_whole_network_is_one_address(host, one):
    assert one_address(host) == one


# Requests of one caller.


def test_a_key_has_so_many_requests_under_way_and_another_key_its_own(serving):
    server = serving(SLOW, keys=Ring([key("ann"), key("bob")]), limits=ServerLimits(caller_requests=2))
    with ExitStack() as held:
        first, _ = busy(server, held, 2, f"Authorization: {bearer('ann')['Authorization']}\r\n")
        refused = server.client.post(URL, json=CHAT, headers=bearer("ann"))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "requests_too_many") and "2 requests" in error[
            "message"
        ]
        assert refused.headers["retry-after"] == "1"
        assert server.client.get("/v1/models", headers=bearer("bob")).status_code == 200
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/ready", headers=bearer("ann")).status_code == 200
        first.close()
        assert eventually(lambda: server.client.get("/v1/models", headers=bearer("ann")).status_code == 200)


def test_without_keys_the_limit_is_an_address_s_and_never_the_owner_s(serving):
    server = serving(SLOW, limits=ServerLimits(caller_requests=1))
    with ExitStack() as held:
        busy(server, held, 1)
        assert server.client.get("/version").status_code == 429
        assert server.owner.get("/version").status_code == server.admin.get("/version").status_code == 200
        with closing(connect_from(server, "127.0.0.2")) as other:
            assert b" 200 " in ask(other)
    assert eventually(lambda: not server.doors.server.requests)


# Heads.


@pytest.mark.parametrize("in_one", [True, False])
@pytest.mark.parametrize(
    "head",
    [
        b"GET /version HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70_000,
        b"GET /version HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(b"X: %b\r\n" % (b"y" * 700) for _ in range(100)),
        b"GET /version?" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: localhost",
    ],
    ids=["one", "many", "url"],
)
def test_a_head_too_long_is_refused_however_it_arrives(serving, head, in_one):
    with closing(connect(serving())) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = head + b"\r\n\r\n"
        for piece in [whole] if in_one else [whole[i : i + 20_000] for i in range(0, len(whole), 20_000)]:
            try:
                sock.sendall(piece)
            except ConnectionError:
                break
            time.sleep(0 if in_one else 0.02)
        told = until(sock, b"}}")
        assert b" 431 " in told and b"longer than 65,536 bytes" in told


def test_a_head_that_comes_behind_a_long_body_is_not_charged_for_it(serving):
    chat = request(URL, {**CHAT, "user": "x" * 100_000})
    second = GET % b"/version"
    with closing(connect(serving())) as sock:
        sock.sendall(chat + second[:10])
        time.sleep(0.05)
        sock.sendall(second[10:])
        told = until(sock, b'"version"')
        assert told.count(b"HTTP/1.1 ") == 2 and b" 431 " not in told


def test_headers_too_many_are_refused(serving):
    with closing(connect(serving())) as sock:
        sock.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n" + b"A:\r\n" * 300 + b"\r\n")
        told = until(sock, b"}}")
        assert b" 431 " in told and b"more than 256 headers" in told


@pytest.mark.parametrize("path", ["/v1/models", "/api/tags", "/v1/messages", "/nowhere"])
@pytest.mark.parametrize(
    "lines, part",
    [
        (b"Host: localhost\r\nHost: evil.com\r\n", b"host came twice"),
        (b"Host: localhost\r\nhost: localhost\r\n", b"host came twice"),
        (
            b"Host: localhost\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n",
            b"authorization came twice",
        ),
        (b"Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.com\r\n", b"origin came twice"),
        (
            b"Host: localhost\r\nContent-Type: a/b\r\nContent-Type: application/json\r\n",
            b"content-type came twice",
        ),
        (b"X: y\r\n", b"host is missing"),
    ],
)
def test_headers_that_contradict_each_other_are_refused(serving, path, lines, part):
    with closing(connect(serving())) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), lines))
        head, _, body = until(sock, b"\n\n").partition(b"\r\n\r\n")
        error = json.loads(body)["error"]
        assert b" 400 " in head and b"application/json" in head and part in body
        assert isinstance(error, str) == path.startswith("/api/")
        assert ("type" in json.loads(body)) == (path == "/v1/messages")


def test_an_old_client_needs_no_host(serving):
    with closing(connect(serving())) as sock:
        sock.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        assert b" 200 " in until(sock, b"}")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /version HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost : localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_json(serving, sent):
    with closing(connect(serving())) as sock:
        sock.sendall(sent)
        head, _, body = until(sock, b"\n\n").partition(b"\r\n\r\n")
        assert b" 400 " in head and b"content-type: application/json" in head
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_token_in_a_second_header_opens_nothing(serving):
    with closing(connect(serving())) as sock:
        sock.sendall(
            b"GET /admin/ps HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n"
            b"Authorization: Bearer %b\r\n\r\n" % TOKEN.encode()
        )
        assert b" 400 " in until(sock, b"}}")


# Open files.


@pytest.mark.parametrize(
    "files, used, connections, held_back",
    [(8192, 30, 2048, 16), (1024, 30, 538, 16), (64, 20, 14, 7)],
)
def test_connections_are_fitted_to_the_files_that_may_be_open(
    monkeypatch, files, used, connections, held_back
):
    monkeypatch.setattr(serve, "open_files", lambda wanted: min(wanted, files))
    monkeypatch.setattr("psutil.Process.num_fds", lambda self: used)
    found = serve.fitted(ServerLimits())
    assert (found.connections, found.held_back) == (connections, held_back)
    assert found.connections + found.held_back + found.waiting + used < files


def test_too_few_files_for_any_connection_are_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(serve, "open_files", lambda wanted: 32)
    monkeypatch.setattr("psutil.Process.num_fds", lambda self: 20)
    with pytest.raises(UsageError, match="may open 32 files") as told:
        serve.fitted(ServerLimits())
    assert "ulimit" in told.value.hint


CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    "rest",
    [
        b"1;" + b"a" * 400_000,
        (b"1;" + b"a" * 4000 + b"\r\n \r\n") * 100,
        b"1\r\n \r\n0\r\nx: " + b"a" * 400_000,
        b"1\r\n \r\n" * 50_000,
    ],
    ids=["extension", "extensions", "trailer", "chunks"],
)
def test_a_body_of_more_framing_than_content_ends_its_connection(serving, rest):
    with closing(connect(serving())) as sock:
        data = b""
        with suppress(ConnectionError):
            sock.sendall(CHUNKED)
            sock.sendall(rest)
        with suppress(ConnectionError):
            while got := sock.recv(65536):
                data += got
        assert b" 200 " not in data


def test_a_body_in_short_chunks_with_a_trailer_is_answered_and_its_trailer_is_nothing(serving):
    server = serving(Script(text="Yes."))
    body = json.dumps(CHAT).encode() + b" " * 40_000
    chunks = b"".join(b"14\r\n%b\r\n" % body[at : at + 20].ljust(20) for at in range(0, len(body), 20))
    with closing(connect(server)) as sock:
        sock.sendall(CHUNKED + chunks + b"0\r\nX-Freehold-Label: none-such\r\nHost: other\r\n\r\n")
        assert b" 200 " in until(sock, b"Yes.")
        assert b" 200 " in ask(sock)  # the connection is used again
