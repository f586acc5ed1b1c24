"""Takes connections from a listening socket at once, and hands them to the loop in turn by address.

The kernel keeps one queue for all who come, and uvloop takes one connection from it in a turn of the loop: after a
burst of 2,000 from one address another's waited for seconds. Here the queue is emptied as it fills; what waits then
waits beside others of its own address, and the oldest of an address that has too many waiting is closed.
Knows sockets and addresses; knows no protocol. Path: serve._Half.startup -> Acceptor -> Guarded.connection_made
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress

from freehold.server.core.limits import ServerLimits, one_address

ACCEPTED = 256  # in one turn of the loop: about 2 ms
STARTED = 32  # handed over in one turn: about 3 ms
HANDSHAKES = 64  # of one address at a time: with TLS a silent client keeps one until it is late
PAUSE_S = 0.1  # until an accept that found no room is tried again
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = logging.getLogger("freehold.server")


class Acceptor:
    """One listening socket; `make` gives the protocol of a new connection."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        limits: ServerLimits,
        context: ssl.SSLContext | None = None,
        refusal: bytes = b"",
    ) -> None:
        """Take the connections of `sock`; one that is closed before its turn is sent `refusal`, without TLS."""
        self._refusal = b"" if context else refusal
        self._sock, self._make, self._limits, self._context = sock, make, limits, context
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[str, deque[socket.socket]] = (
            OrderedDict()
        )  # address -> its, the oldest first
        self._waits = 0
        self._starting: dict[asyncio.Task[None], str] = {}
        self._of_address: Counter[str] = Counter()  # of those that are starting
        self._handing: asyncio.Handle | None = None
        sock.setblocking(False)
        sock.listen(limits.backlog)
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Take no more, and close what still waits."""
        self._loop.remove_reader(self._sock)
        if self._handing is not None:
            self._handing.cancel()
        for queue in self._waiting.values():
            for each in queue:
                each.close()
        self._waiting.clear()
        for task in self._starting:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for what was starting."""
        await asyncio.gather(*self._starting, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTED):
            try:
                one, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:  # it was gone before we came
                continue
            except OSError as e:
                self._cannot(e)
                break
            self._keep(one, one_address(address[0]) if isinstance(address, tuple) else "")
        if self._waits and self._handing is None:
            self._handing = self._loop.call_soon(self._hand)

    def _cannot(self, e: OSError) -> None:
        """Rest for a moment: a socket that is ready and cannot be accepted would be tried in every turn."""
        if e.errno not in _FULL:
            raise e
        _log.error("no connection can be accepted: %s", e.strerror)
        self._loop.remove_reader(self._sock)
        self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    def _keep(self, one: socket.socket, address: str) -> None:
        one.setblocking(False)
        queue = self._waiting.setdefault(address, deque())
        queue.append(one)
        self._waits += 1
        if self._waits > self._limits.waiting:  # of the address that has most
            address = max(self._waiting, key=lambda each: len(self._waiting[each]))
            self._turn_away(self._next(address))

    def _turn_away(self, one: socket.socket) -> None:
        with one, suppress(OSError):  # the client left, or has no room for an answer
            one.send(self._refusal)

    def _next(self, address: str) -> socket.socket:
        """Take the oldest of `address` out, and let the other addresses go first the next time."""
        queue = self._waiting[address]
        one = queue.popleft()
        self._waits -= 1
        if queue:
            self._waiting.move_to_end(address)
        else:
            del self._waiting[address]
        return one

    def _hand(self) -> None:
        self._handing = None
        for _ in range(STARTED):
            address = next((a for a in self._waiting if self._of_address[a] < HANDSHAKES), None)
            if address is None:
                break
            task = self._loop.create_task(self._start(self._next(address)))
            self._starting[task] = address
            self._of_address[address] += 1
            task.add_done_callback(self._started)
        if any(self._of_address[a] < HANDSHAKES for a in self._waiting):
            self._handing = self._loop.call_soon(self._hand)

    async def _start(self, one: socket.socket) -> None:
        late = self._limits.header_s if self._context else None
        try:
            await self._loop.connect_accepted_socket(
                self._make, one, ssl=self._context, ssl_handshake_timeout=late
            )
        except (OSError, TimeoutError):  # no TLS, or not in time
            one.close()

    def _started(self, task: asyncio.Task[None]) -> None:
        address = self._starting.pop(task)
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
        if self._waits and self._handing is None:
            self._handing = self._loop.call_soon(self._hand)
