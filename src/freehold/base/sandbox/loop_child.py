"""A child process that an event loop asks: a request goes to it in frames, and no step of the loop waits for it.

Knows processes and frames (wire.py); knows nothing of what a child computes. The child's end is `parent_socket`.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress

from freehold.base.sandbox.children import (
    KILLED,
    LENGTH,
    START_S,
    follow_parent,
    may_be_limited,
    spawn_on_socket,
)

PORTION = 1 << 16  # bytes that are sent in one step, some 50 us,
FRAMES = 256  # of as many frames at most: making them takes some 0.3 ms
MOST_REPLY = 1 << 20  # bytes


class LoopChild:
    """One process and the socket to it; one request at a time. Raises OSError where no process can be started."""

    def __init__(self, module: str) -> None:
        self._sock, theirs = socket.socketpair()
        self._sock.setblocking(False)
        self._greeted = False
        with theirs:
            self._process = spawn_on_socket((sys.executable, "-P", "-m", module), self._sock, theirs)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, frames: Iterable[bytes], wall_s: float) -> bytes:
        """Send frames and an empty one, and return the answer's frame; the loop has a turn after each portion.

        Raises OSError where the child ended, and TimeoutError, which is one, where it does not answer in `wall_s`.
        """
        if not self._greeted:
            async with asyncio.timeout(START_S):
                self._greeted = bool(await self._exactly(1))
        async with asyncio.timeout(wall_s):
            await self._send(frames)
            size = int.from_bytes(await self._exactly(LENGTH), "little")
            return await self._exactly(min(size, MOST_REPLY))

    async def _send(self, frames: Iterable[bytes]) -> None:
        loop, portion = asyncio.get_running_loop(), bytearray()
        for number, frame in enumerate(frames, 1):
            portion += _framed(frame)
            if len(portion) >= PORTION or number % FRAMES == 0:
                await loop.sock_sendall(self._sock, portion)
                await asyncio.sleep(0)  # sock_sendall does not wait where all fits the socket's buffer
                portion = bytearray()
        await loop.sock_sendall(self._sock, portion + _framed(b""))

    async def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = await asyncio.get_running_loop().sock_recv(self._sock, size - len(data))
            if not piece:
                raise ConnectionResetError("the child ended")
            data += piece
        return bytes(data)

    def is_there(self) -> bool:
        """Tell whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it, without waiting on the event loop until its memory is given back."""
        self._process.kill()
        self._sock.close()
        threading.Thread(target=self._process.wait, daemon=True).start()

    def end(self) -> int:
        """Return how it ended; one that still runs is killed. Takes up to 0.2 s."""
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.2)  # one that died may not be taken down yet
        self._process.kill()
        return self._process.wait()

    def blamed(self, code: int) -> bool:
        """Return whether what it was asked ended it, by how it ended: a kill from elsewhere says nothing of that."""
        return self._greeted and -code not in (0, *KILLED)


def parent_socket() -> socket.socket:
    """Return the socket to the parent, in a child's main; the child ends with its parent from now on."""
    follow_parent(int(sys.argv[2]))
    may_be_limited()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.sendall(b"+")
    return sock


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH, "little") + message
