"""A server of tools as a process of ours: started without our environment, read in bounds, ended with all its children.

Its stdout is the protocol, one message a line; a line that is none is kept with those of stderr and otherwise ignored.
What it writes is limited: 4 MB a message, and 16 MB and 10,000 lines between two requests of ours, beyond which it is
ended. Knows processes, bytes and lines; knows no message. Path: over_stdio -> ChildServer -> guard.py -> the server
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from freehold.errors import EngineLost
from freehold.sandbox.children import spawn
from freehold.tools.mcp.configured import MAX_MESSAGE, ToolServer
from freehold.tools.mcp.guard import NOT_STARTED

COMMAND = (sys.executable, "-P", "-m", "freehold.tools.mcp.guard")
# What a program needs to run and find its files. No key of ours is among them, and none that a shell exports.
PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME")
MAX_BYTES, MAX_LINES = 16 << 20, 10_000
KEPT_LINES, KEPT_CHARACTERS = 50, 300
CLOSE_S = 2.0  # for a server whose stdin was closed; the protocol asks for a while
KILL_S = 8.0
_READ = 1 << 16
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def environment(server: ToolServer, ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return all that a server finds in its environment."""
    ours = os.environ if ours is None else ours
    return {**{name: ours[name] for name in PASSED if name in ours}, **server.env}


class Said(asyncio.Protocol):
    """A ring of the last lines that a server wrote for people, without what a terminal would obey."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._held = b""

    def data_received(self, data: bytes) -> None:
        """Take lines; of one without an end, the beginning."""
        *whole, self._held = (self._held + data[-_READ:]).split(b"\n")
        for line in whole[-KEPT_LINES:]:
            self.add(line)
        self._held = self._held[: 4 * KEPT_CHARACTERS]

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep what had no line end."""
        self.add(self._held)

    def add(self, raw: bytes) -> None:
        """Keep a line."""
        text = _CONTROL.sub("", raw[: 4 * KEPT_CHARACTERS].decode("utf-8", "replace")).strip()
        if text:
            self.lines.append(text[:KEPT_CHARACTERS])

    @property
    def last(self) -> str:
        """The last line, as the end of a sentence."""
        return f"; its last line: {self.lines[-1]}" if self.lines else ""


class ChildServer:
    """One running process. Made and used within one event loop."""

    def __init__(self, server: ToolServer) -> None:
        self.server, self.said = server, Said()
        self.why = ""  # it was ended by us
        self._bytes = self._lines = 0
        self._guard: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._pipes: list[asyncio.ReadTransport] = []

    async def start(self) -> None:
        """Start it. Raises EngineLost: no process could be made. A wrong command is found when it is read from."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        job = {"argv": list(self.server.command), "env": environment(self.server), "cwd": _folder()}
        try:
            self._guard = guard = spawn(
                (*COMMAND, str(theirs.fileno())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as e:
            ours.close()
            raise EngineLost(f"the server {self.server.name} was not started: {e}") from e
        finally:
            theirs.close()
        self._orders = ours
        ours.sendall(json.dumps(job).encode() + b"\n")
        assert guard.stdin and guard.stdout and guard.stderr
        self._reader = asyncio.StreamReader(limit=_READ)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._pipes = [
            (await loop.connect_read_pipe(lambda: protocol, guard.stdout))[0],
            (await loop.connect_read_pipe(lambda: self.said, guard.stderr))[0],
        ]
        os.set_blocking(guard.stdin.fileno(), False)

    def asked(self) -> None:
        """Begin to count again: a request was made."""
        self._bytes = self._lines = 0

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield lines that look like messages, to the end of its output. Raises EngineLost beyond the limits."""
        held = bytearray()
        while part := await self._reader.read(_READ):
            self._count(part)
            held += part
            if b"\n" not in part:
                if len(held) > MAX_MESSAGE:
                    raise self._flood(f"a message of more than {MAX_MESSAGE:,} bytes")
                continue
            *whole, rest = held.split(b"\n")
            held = bytearray(rest)
            for line in whole:
                if line.lstrip()[:1] == b"{":
                    yield bytes(line)
                elif line.strip():
                    self.said.add(b"on stdout: " + line[: 4 * KEPT_CHARACTERS])

    async def write(self, line: bytes) -> None:
        """Write a message. Raises EngineLost: it has ended."""
        pipe = self._guard.stdin if self._guard else None
        left = memoryview(line)
        while left:
            if pipe is None or pipe.closed:
                raise EngineLost(self.ending())
            try:
                left = left[os.write(pipe.fileno(), left) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)  # it does not read; the request's own time ends this
            except OSError:
                raise EngineLost(self.ending()) from None

    def ending(self) -> str:
        """Return a sentence that says how it ended."""
        name = f"the server {self.server.name}"
        if self.why:
            return f"{name} was ended: {self.why}"
        status = self._guard.poll() if self._guard else None
        if status == NOT_STARTED and self.said.lines:
            return f"{name} does not start: {self.said.lines[-1]}"
        how = f" with status {status}" if status else ""
        return f"{name} ended{how}{self.said.last}"

    async def close(self, why: str = "", *, now: bool = False) -> None:
        """Close its stdin, wait a little, then end it and all below it. `now`: without waiting."""
        self.why = self.why or why
        guard, orders = self._guard, self._orders
        if guard is None or orders is None:
            return
        assert guard.stdin is not None
        with suppress(OSError):
            guard.stdin.close()
        if not now:
            await _ended(guard, CLOSE_S)
        orders.close()
        if not await _ended(guard, KILL_S):
            guard.kill()
            await _ended(guard, KILL_S)
        for pipe in self._pipes:
            pipe.close()

    def _count(self, part: bytes) -> None:
        self._bytes += len(part)
        self._lines += part.count(b"\n")
        if self._bytes > MAX_BYTES:
            raise self._flood(f"more than {MAX_BYTES:,} bytes for one request")
        if self._lines > MAX_LINES:
            raise self._flood(f"more than {MAX_LINES:,} lines for one request")

    def _flood(self, what: str) -> EngineLost:
        self.why = self.why or f"it wrote {what}"
        return EngineLost(self.ending())


async def _ended(guard: subprocess.Popen[bytes], within_s: float) -> bool:
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while guard.poll() is None:
        if loop.time() > until:
            return False
        await asyncio.sleep(0.01)
    return True


def _folder() -> str:
    """Return the folder it starts in: the user's own, not that of whatever we were started in."""
    return os.environ.get("HOME") or tempfile.gettempdir()
