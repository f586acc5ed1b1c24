"""Messages between a process and its renderer: each a length in four bytes, then its bytes."""

from __future__ import annotations

import select
import socket

LENGTH = 4  # bytes before a message


def send(sock: socket.socket, message: bytes) -> None:
    """Send a message: its length, then its bytes."""
    sock.sendall(len(message).to_bytes(LENGTH, "little") + message)


def receive(sock: socket.socket, most: int = (1 << 32) - 1) -> bytes:
    """Return the next message, empty at the end. Raises OSError for one of more than `most` bytes."""
    size = int.from_bytes(_exactly(sock, LENGTH), "little")
    if size > most:
        raise OSError(f"a message of {size:,} bytes; the limit is {most:,}")
    return _exactly(sock, size)


def waits(sock: socket.socket, seconds: float) -> bool:
    """Return whether something can be read within `seconds`. Not by select: it takes no descriptor over 1,023."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _exactly(sock: socket.socket, size: int) -> bytes:
    """Return `size` bytes, or nothing if the other end closes first."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 20))
        if not piece:
            return b""
        data += piece
    return bytes(data)
