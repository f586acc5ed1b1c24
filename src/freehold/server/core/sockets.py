"""Binds the sockets that a server listens on: local addresses, and the owner's Unix socket.

Knows addresses, folders and modes; knows no request. Path: cli/serve -> bind_tcp, bind_unix -> serve.run
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from freehold import private
from freehold.errors import UsageError
from freehold.platforms import SOCKET_PATH_BYTES
from freehold.server.core.auth import host_name


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
        raise UsageError(f"{folder} is open to others", "it must belong to you alone: chmod 700")
    if _answers(path):
        raise UsageError(f"a server listens at {path} already", "freehold stop ends it")
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
    except OSError as e:
        sock.close()
        raise UsageError(
            f"{path} cannot be bound: {e}", f"a socket's path has at most {SOCKET_PATH_BYTES} bytes"
        ) from e
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
