"""Who is served first where many come at once."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest

from freehold.serve.http.core import sockets
from freehold.serve.http.core.connections import full
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.sockets import Acceptor, checked
from tests.http.test_door import make


class Noted(asyncio.Protocol):
    """A protocol that notes whose connection it was given."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._seen.append(transport.get_extra_info("peername")[0])


async def until(holds: Callable[[], bool]) -> bool:
    for _ in range(500):
        if holds():
            return True
        await asyncio.sleep(0.01)
    return False


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    return sock


def come(sock: socket.socket, source: str) -> socket.socket:
    return socket.create_connection(sock.getsockname(), timeout=60, source_address=(source, 0))


def test_an_address_waits_behind_its_own_connections_and_not_behind_another_s(monkeypatch):
    monkeypatch.setattr(sockets, "STARTED", 2)
    seen: list[str] = []

    async def main() -> None:
        with closing(listening()) as sock, ExitStack() as held:
            for source in (*["127.0.0.2"] * 20, "127.0.0.1"):
                held.enter_context(closing(come(sock, source)))
            acceptor = Acceptor(sock, lambda: Noted(seen), ServerLimits())
            assert await until(lambda: len(seen) == 21)
            acceptor.close()

    asyncio.run(main())
    assert "127.0.0.1" in seen[:2]


def test_of_too_many_that_wait_the_oldest_of_the_address_with_most_go():
    seen: list[str] = []

    async def main() -> list[bytes]:
        with closing(listening()) as sock, ExitStack() as held:
            many = [held.enter_context(closing(come(sock, "127.0.0.2"))) for _ in range(10)]
            held.enter_context(closing(come(sock, "127.0.0.1")))
            acceptor = Acceptor(
                sock, lambda: Noted(seen), ServerLimits(waiting=4), refusal=full(ServerLimits())
            )
            assert await until(lambda: len(seen) == 4)
            acceptor.close()
            return [each.recv(12) + each.recv(1000)[-1:] + each.recv(1) for each in many[:7]]

    assert asyncio.run(main()) == [b"HTTP/1.1 503}"] * 7  # and closed; the last three are served
    assert sorted(seen) == ["127.0.0.1", *["127.0.0.2"] * 3]


def test_a_process_without_room_for_files_rests_before_it_accepts_again(monkeypatch, caplog):
    monkeypatch.setattr(sockets, "PAUSE_S", 0.05)
    seen: list[str] = []
    tries: list[float] = []

    class Full(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            tries.append(asyncio.get_running_loop().time())
            if len(tries) == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def main() -> None:
        with closing(Full()) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen(5)
            with closing(come(sock, "127.0.0.1")):
                acceptor = Acceptor(sock, lambda: Noted(seen), ServerLimits())
                assert await until(lambda: len(seen) == 1)
                acceptor.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert tries[1] - tries[0] > 0.04 and "Too many open files" in caplog.text


def test_clients_that_begin_no_handshake_hold_nobody_up(serving, tmp_path, monkeypatch):
    monkeypatch.setattr(sockets, "HANDSHAKES", 2)
    tls = checked(*make(tmp_path))
    assert tls is not None
    server = serving(tls=tls, limits=ServerLimits(header_s=0.5))
    context = ssl.create_default_context(cafile=str(tls.cert))
    where = ("127.0.0.1", server.port)
    with ExitStack() as held:
        silent = [
            held.enter_context(closing(socket.create_connection(where, 10, source_address=("127.0.0.2", 0))))
            for _ in range(20)
        ]
        with (
            closing(socket.create_connection(where, 10)) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as sock,
        ):
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in sock.recv(1000)
        with pytest.raises((ConnectionError, AssertionError)):  # it was late, and is closed
            assert silent[0].recv(1), "closed"
