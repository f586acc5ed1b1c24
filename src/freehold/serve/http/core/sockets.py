"""The sockets that a server listens on: bound, their certificate checked, and their connections accepted in turn.

Knows addresses, folders, modes and TLS; knows no request.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from freehold.base import private
from freehold.base.errors import UsageError
from freehold.base.platforms import SOCKET_PATH_BYTES
from freehold.base.regular import read_regular
from freehold.serve.http.core.auth import host_name
from freehold.serve.http.core.limits import ServerLimits, one_address


def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Bind `host` (a name may mean several addresses); port 0 takes a free one. Raises UsageError."""
    name = host_name(host)
    try:
        addresses = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as e:
        raise UsageError(f"{name} is not a local address: {e.strerror}") from e
    out: list[socket.socket] = []
    for family, kind, proto, _, address in dict.fromkeys(addresses):
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and out:  # the same free port for every address
                address = (address[0], out[0].getsockname()[1], *address[2:])
            sock.bind(address)
        except OSError as e:
            sock.close()
            for each in out:
                each.close()
            raise UsageError(f"{name}:{port} cannot be bound: {e.strerror}", "choose another --port") from e
        out.append(sock)
    return out


def bind_unix(path: Path) -> socket.socket:
    """Bind a socket in a folder that only this user enters. Raises UsageError if another server listens there."""
    folder = path.parent
    private.folder(folder)
    status = folder.stat()
    # The bit that hands a group on (setgid) gives no right; a volume of a cluster has it, and folders inherit it.
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise UsageError(f"{folder} is open to others", "only you may have access: chmod 700")
    if _answers(path):
        raise UsageError(f"a server listens at {path} already", "freehold stop ends it")
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except OSError as e:
        sock.close()
        message = f"{path} cannot be bound: {e}"
        raise UsageError(message, f"a socket's path has at most {SOCKET_PATH_BYTES} bytes") from e
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """Return the URL that a bound TCP socket is reached at from this machine."""
    address: tuple[str, int] = sock.getsockname()[:2]
    host, port = address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or host
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


# --- a certificate and its key, checked by a handshake in memory before the server listens ----------
# uvicorn reads the files again.

MOST_BYTES = 1 << 20  # of a file: a bundle of all public authorities has 220,000
_MAKE = "one for a try: openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -keyout KEY -out CERT"


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate and its key. `names`: the certificate's host names."""

    cert: Path
    key: Path
    names: tuple[str, ...] = ()
    ends_at: float = 0.0  # seconds since 1970

    @property
    def days_left(self) -> float:
        """Days until the certificate expires."""
        return (self.ends_at - time.time()) / 86400


def checked(cert: Path | None, key: Path | None) -> Tls | None:
    """Return the pair, None for neither. Raises UsageError for what no client could speak to."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = "--tls-key" if key is None else "--tls-cert"
        raise UsageError(f"{missing} is missing: TLS takes a certificate and its key", _MAKE)
    cert, key = cert.expanduser(), key.expanduser()
    for path in (cert, key):
        try:
            read_regular(path, MOST_BYTES)
        except OSError as e:
            raise UsageError(f"{path} cannot be read: {e.strerror}", _MAKE) from e
    if key.stat().st_mode & 0o077:
        raise UsageError(f"others may read the private key {key}", f"chmod 600 {key}")
    return _shaken(_context(cert, key), cert, key)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def ask() -> str:
        message = f"the private key {key} has a password, and the server cannot enter it"
        raise UsageError(message, f"openssl pkey -in {key} -out PLAIN writes one without")

    try:
        context.load_cert_chain(cert, key, ask)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"{key} is not the key of the certificate {cert}") from e
        message = f"{cert} and {key} are not a certificate and key in PEM: {e.reason or e}"
        raise UsageError(message, _MAKE) from e
    return context


def _shaken(server: ssl.SSLContext, cert: Path, key: Path) -> Tls:
    """Let a client that trusts this very certificate speak to it; nothing leaves memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an authority's certificate need not be in the file
    client.load_verify_locations(cert)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(up, down, server_side=True)
    theirs = client.wrap_bio(down, up)
    try:
        for side in (theirs, ours, theirs, ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as e:
        raise UsageError(f"no client would accept {cert}: {e.verify_message}", _MAKE) from e
    except ssl.SSLError as e:
        raise UsageError(f"no client could speak to {cert}: {e.reason or e}", _MAKE) from e
    certificate = theirs.getpeercert() or {}
    alternatives: list[str] = [str(value) for _, value in certificate.get("subjectAltName", ())]  # type: ignore[misc]
    ends = certificate.get("notAfter")
    return Tls(cert, key, tuple(alternatives), ssl.cert_time_to_seconds(str(ends)) if ends else 0.0)


# --- connections: taken from a listening socket at once, and handed to the loop in turn by address --
# The kernel keeps one queue for all who come, and uvloop takes one connection from it in a turn of the loop:
# after a burst of 2,000 from one address another's waited for seconds. Here the queue is emptied as it fills;
# what waits then waits beside others of its own address, and the oldest of an address that has too many
# waiting is closed.

ACCEPTED = 256  # in one turn of the loop: about 2 ms
STARTED = 32  # handed over in one turn: about 3 ms
HANDSHAKES = 64  # of one address at a time: with TLS a silent client keeps one until it is late
PAUSE_S = 0.1  # until an accept that found no room is tried again
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = logging.getLogger("freehold.serve.http")


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
        self._waiting = OrderedDict[str, deque[socket.socket]]()  # address -> its, the oldest first
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
