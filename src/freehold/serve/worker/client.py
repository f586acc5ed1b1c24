"""The server's end of one engine process: how it is started, handshake, send, reap.

Knows options of an engine, sockets, frames and a child process; knows no streams, no restarts. The process gets one end
of a socket pair without a path or port; it runs in a session of its own, so that Ctrl-C reaches the server alone, and
it ends when this end is closed or this process ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from freehold.base.errors import EngineLost, Overloaded
from freehold.base.machine import memory_kills
from freehold.base.sandbox.children import spawn
from freehold.base.serving import ModelInfo
from freehold.base.types import ImageBudget, KvType, ServedModelOptions
from freehold.base.version import __version__
from freehold.serve.worker.wire import (
    PROTOCOL,
    BadFrame,
    EngineReady,
    Failed,
    Frame,
    FromEngine,
    Hello,
    Loading,
    Open,
    Reader,
    WireMessage,
    Writer,
)

# --- how a server starts its engines ---------------------------------------------------------------

# The time after which an idle model leaves memory.
KEEP_ALIVE_S = 300.0


class KeepAlive:
    """Calls `expired` when a model has been idle for as long as its latest request asked, or `default_s`."""

    def __init__(self, default_s: float, expired: Callable[[], None]) -> None:
        self._default_s = self._seconds = default_s
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        # A request moves the deadline and leaves the timer, which looks again when it is due: two timers a request
        # cost more than reading it.
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf  # of the loop's clock
        self.expires_at: float | None = None  # time.time() of the unloading; None: busy, or never
        self.used_at = self._loop.time()

    def used(self, seconds: float | None) -> None:
        """Note a request; `seconds`: its keep_alive, None for the default, negative for ever."""
        self.used_at = self._loop.time()
        self._seconds = self._default_s if seconds is None else seconds
        self._deadline, self.expires_at = math.inf, None

    def idle(self) -> None:
        """Count from now."""
        self.used_at = self._loop.time()
        if not 0 <= self._seconds < math.inf:
            self._deadline, self.expires_at = math.inf, None
            return
        self._deadline, self.expires_at = self.used_at + self._seconds, time.time() + self._seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._deadline:
            self._expired()
        elif self._deadline < math.inf:
            self._timer = self._loop.call_at(self._deadline, self._look)

    def cancel(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.expires_at = None
        self._deadline = math.inf


HUNG_S = 120.0  # without a sign while there is work. The longest step is a second; a swapping machine is slow


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of all engines of a server; None leaves the choice to the engine."""

    context: int | None = None
    kv_type: KvType = "f16"
    threads: int | None = None
    speculate: bool = True
    allow_paging: bool = False
    eyes: str = "lazy"  # as ModelOptions
    image_tokens: ImageBudget | None = None
    draft: str | None = None  # MODEL that drafts; for the models of its family only
    adapters: Mapping[str, Mapping[str, Path]] = field(
        default_factory=dict
    )  # MODEL -> name -> file or folder
    disk: Path | None = None  # folder for cached prefixes that survive a restart
    cache_bytes: int | None = None  # of each model's cache
    max_models: int | None = None  # loaded at once
    keep_alive_s: float = KEEP_ALIVE_S
    hung_s: float = HUNG_S
    engine: ServedModelOptions = field(
        default_factory=ServedModelOptions
    )  # target_itl_s, limits of the queue


# --- one engine process ----------------------------------------------------------------------------

# Of the environment, what an engine has no use for: it serves no client and downloads nothing. A provider's keys
# were taken out before (router/toml/table.py).
KEYS = ("FREEHOLD_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# -P: no module is imported from the folder the server happens to run in.
COMMAND = [sys.executable, "-P", "-m", "freehold.serve.worker.process"]
BUFFER = 1 << 20  # bytes of socket buffer, so that a step of 500 streams is sent without waiting for us
# Bytes of new requests that an engine has not taken yet: one that is stopped, or swaps, takes none, and the messages of
# clients that left meanwhile wait with the others. The largest frame fits alone.
MAX_WAITING = 64 << 20
PIECE, PIECES = 256 << 10, 4  # bytes that the transport gets at a time, and how often in one turn of the loop
STOP_S = 12.0  # for a process to end by itself, longer than process.LEAVE_S
HELLO_S = 60.0  # for an interpreter to start, on a machine that is short of everything

log = logging.getLogger("freehold.serve.worker")


class EngineDied(Exception):
    """The process ended by itself, or never started; the text says how."""


class EngineProcess(asyncio.Protocol):
    """One process. `gone` resolves to how it ended."""

    def __init__(
        self, on_frame: Callable[[Frame], None], on_loading: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frame, self._on_loading = on_frame, on_loading
        self._reader, self._writer = Reader(FromEngine), Writer()
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._ready: asyncio.Future[ModelInfo] = self._loop.create_future()
        self.gone: asyncio.Future[str] = self._loop.create_future()
        self._reaping: asyncio.Task[None] | None = None
        # Parts of frames: of this turn of the loop, and those that the transport has no room for.
        self._out: deque[bytes | memoryview] = deque()
        self._out_bytes = 0
        self._flushing = self._paused = False
        self._fault = ""
        self.heard = self._loop.time()  # when its latest message came
        self._memory_kills = memory_kills()

    @property
    def pid(self) -> int:
        """The process's number, 0 before it has one."""
        return self._process.pid if self._process else 0

    async def start(self, request: Open) -> ModelInfo:
        """Spawn the process and load. Raises the error that loading gave, or EngineDied."""
        await self._spawn()
        try:
            await self._greeting()
            self.send(request)
            return await self._ready
        except BaseException:
            self.kill()
            await asyncio.shield(self.gone)
            raise

    async def _greeting(self) -> None:
        # Not wait_for: until Python 3.12 it swallows a cancellation that comes in one turn with the greeting.
        if not (await asyncio.wait([self._greeted], timeout=HELLO_S))[0]:
            raise EngineDied(f"it sent nothing for {HELLO_S:.0f} s after its start, and was killed")
        await self._greeted

    async def _spawn(self) -> None:
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = _process_with(ours, theirs)
        except OSError as e:  # memory, processes or file descriptors may be available again in a moment
            raise EngineDied(f"it could not be started: {e.strerror}") from e
        await self._loop.create_unix_connection(lambda: self, sock=ours)

    def send(self, message: WireMessage, most: float = math.inf) -> None:
        """Send a message; those of one turn of the loop go out together.

        Raises UsageError for one too large, Overloaded where it and what the process has not taken yet are more than
        `most` bytes.
        """
        pieces = self._writer.pieces(message)
        size = sum(map(len, pieces))
        if (waiting := self._waiting()) and waiting + size > most:
            raise Overloaded(
                f"{waiting:,} bytes of requests wait until the engine takes them; the limit is {most:,}",
                "try again in a moment",
                1.0,
            )
        self._out += pieces
        self._out_bytes += size
        self._flush_soon()

    def _waiting(self) -> int:
        written = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return written + self._out_bytes

    def _flush(self) -> None:
        """Write what waits: some of it in each turn of the loop, until the transport has enough."""
        self._flushing = False
        transport = self._transport
        if transport is None or transport.is_closing():
            self._out.clear()
            self._out_bytes = 0
            return
        for _ in range(PIECES):
            if self._out and not self._paused:
                transport.write(self._next_bytes())
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._out and not self._flushing and not self._paused:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _next_bytes(self) -> bytes:
        """Take the next bytes to write: small parts together, a large one in pieces."""
        if self._out_bytes <= PIECE:
            whole = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            return whole
        taken: list[bytes | memoryview] = []
        room = PIECE
        while self._out and room:
            part = memoryview(self._out.popleft())
            if len(part) > room:
                self._out.appendleft(part[room:])
            taken.append(part[:room])
            room -= len(taken[-1])
        self._out_bytes -= PIECE - room
        return b"".join(taken)

    def pause_writing(self) -> None:
        """Write no more: the transport has enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """Write again."""
        self._paused = False
        self._flush_soon()

    def kill(self, why: str = "") -> None:
        """End the process at once; `gone` will say `why`."""
        self._fault = self._fault or why
        if self._process is not None:
            self._process.kill()
        if self._transport is not None:
            self._transport.abort()

    async def stop(self, within: float = STOP_S) -> None:
        """Close the socket, which ends the process, and wait for that; kill one that takes longer than `within`."""
        if self._transport is not None:
            self._flush()
            self._transport.close()  # only when what it has is written, and a stopped process reads nothing
            late = self._loop.call_later(within, self.kill)
            await asyncio.shield(self.gone)
            late.cancel()

    # --- what the event loop calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(BUFFER)

    def data_received(self, data: bytes) -> None:
        """Pass messages on; end a process that sends invalid ones.

        Only whole messages are signs of life: one that comes a byte a second would be waited for without end.
        """
        try:
            messages = self._reader.push(data)
            if messages:
                self.heard = self._loop.time()
            for message in messages:
                self._heard(message)
        except BadFrame as e:
            self.kill(f"it sent {e}")
        except Exception as e:  # asyncio would close the socket, and wait for a process that need not end
            log.exception("a message of the engine process %d", self.pid)
            self.kill(f"a message of it could not be used: {type(e).__name__}")

    def _heard(self, message: FromEngine) -> None:
        if isinstance(message, Frame):
            return self._on_frame(message)
        if isinstance(message, Hello):
            return self._greet(message)
        if isinstance(message, Loading):
            return self._on_loading(message.done, message.total)
        if self._ready.done():
            if isinstance(message, Failed):
                self._fault = message.message
            return None
        if isinstance(message, EngineReady):
            return self._ready.set_result(message.info)
        return self._refused(message.error)

    def _greet(self, hello: Hello) -> None:
        if (hello.protocol, hello.version) == (PROTOCOL, __version__):
            if not self._greeted.done():
                self._greeted.set_result(None)
            return
        self._refused(
            EngineLost(
                f"this server is freehold {__version__} (protocol {PROTOCOL}) and its engine process "
                f"{hello.version} (protocol {hello.protocol})",
                "freehold was replaced while the server ran; start the server again",
            )
        )

    def _refused(self, error: Exception) -> None:
        for waiting in (self._greeted, self._ready):
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # retrieved: the waiter of the other future raises it

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for the process's end, which closed the socket or follows it."""
        self._reaping = self._loop.create_task(self._reap())

    async def _reap(self) -> None:
        process = self._process
        assert process is not None
        try:
            code = await self._loop.run_in_executor(None, process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = await self._loop.run_in_executor(None, process.wait)
        how = self._fault or ended_by(code, self._memory_kills, memory_kills())
        self._refused(EngineDied(how))
        if not self.gone.done():
            self.gone.set_result(how)


def _process_with(ours: socket.socket, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Start a process that has the other end of our socket. Raises OSError, and closes ours then."""
    try:
        for end in (ours, theirs):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        ours.setblocking(False)
        return spawn(
            [*COMMAND, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in KEYS},
            stdout=2,  # what a library prints goes to the log, not into the server's data
            start_new_session=True,
        )
    except OSError:
        ours.close()
        raise


def ended_by(code: int, kills_before: int | None, kills_now: int | None) -> str:
    """Say how a process ended, by its status and the kernel's count of processes it ended for lack of memory."""
    if code >= 0:
        return f"it ended with status {code}"
    name = str(-code)
    with suppress(ValueError):
        name = signal.Signals(-code).name
    if -code != signal.SIGKILL:
        return f"it was ended by {name}"
    if kills_before is None or kills_now is None:
        return f"it was ended by {name}: by the kernel for lack of memory, or by another process"
    if kills_now > kills_before:
        return f"it was ended by {name}, and the kernel ended {kills_now - kills_before} for lack of memory meanwhile"
    return f"it was ended by {name}, by another process: the kernel ended none for lack of memory meanwhile"
