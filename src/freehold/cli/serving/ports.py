"""Listening sockets, bound before anything is loaded; a port in use is an error that names its owner and a free one.

Knows ports and processes; knows no server. Path: serve -> bound -> core.sockets.bind_tcp
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from freehold.errors import AddressTaken, UsageError

if TYPE_CHECKING:
    import socket


PORTS = 20  # ports searched for a free one after a port in use


def bound(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Bind the port. Raises AddressTaken for one in use, with its owner and a free port."""
    from freehold.server.core.sockets import bind_tcp

    try:
        return bind_tcp(host, port)
    except UsageError as e:
        if not isinstance(e.__cause__, OSError) or e.__cause__.errno != errno.EADDRINUSE:
            raise
    free = next((p for p in range(port + 1, min(port + PORTS, 65535)) if _is_free(host, p)), 0)
    raise AddressTaken(f"port {port} is in use by {_owner(port)}", f"freehold serve {option} {free}")


def _is_free(host: str, port: int) -> bool:
    from freehold.server.core.sockets import bind_tcp

    try:
        for sock in bind_tcp(host, port):
            sock.close()
    except UsageError:
        return False
    return True


def _owner(port: int) -> str:
    """Return the process that listens on `port`, as far as this user may see it."""
    import psutil

    try:
        for c in psutil.net_connections("tcp"):
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid:
                return f"{psutil.Process(c.pid).name()} (pid {c.pid})"
    except psutil.Error:
        pass
    return "another user's process"
