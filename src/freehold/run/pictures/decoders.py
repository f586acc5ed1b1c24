"""The processes that decode pictures, as their parent sees them: started, talked to, ended, and blamed by name.

Where the system can confine a process (Linux), one stays, imports Pillow once and forks for every picture; child.py
has both. Elsewhere each picture has a process that is started for it. Knows limits, sockets and how processes ended;
knows no picture and no Pillow. Safe from many threads, and after a fork.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from freehold.base.errors import CapacityExceeded, FreeholdError, UsageError
from freehold.base.platforms import can_confine
from freehold.base.sandbox.children import LENGTH, START_S, ChildEnded, TimedTalk, spawn_on_socket, watched
from freehold.run.pictures import limits
from freehold.run.pictures.limits import HINT, NO_PILLOW, ONCE, OUT_OF_MEMORY, READY, STAYS

COMMAND = (sys.executable, "-P", "-m", "freehold.run.pictures.child", STAYS)
COMMAND_ONCE = (*COMMAND[:-1], ONCE)
REMEMBERED = 1024  # clients of which it is known when they had their latest turn
MOST = 2  # pictures at once: two may fill their memory
WALL_S = 60.0  # on the clock: a busy machine takes longer than limits.SECONDS
GARBLED = "the picture's decoder answered with something else: the file may be an attack on it"
_TRIES = 2
_MOST_REPLY = 1 << 16  # bytes
_END_S = 5.0  # for a process that was killed, or has closed its end, to be gone

T = TypeVar("T")
_CLIENT: ContextVar[str] = ContextVar("whose picture is decoded", default="")


@contextmanager
def in_turn_of(client: str) -> Iterator[None]:
    """Have the pictures that are opened within take the turns of a client."""
    token = _CLIENT.set(client)
    try:
        yield
    finally:
        _CLIENT.reset(token)


class Talk(TimedTalk):
    """What is said with a process that decodes one picture. Every method raises ChildEnded."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, WALL_S)

    def receive(self) -> dict[str, Any]:
        """Return the next message. Raises UsageError for anything but an object in JSON."""
        size = int.from_bytes(self.read(LENGTH), "little")
        if size > _MOST_REPLY:
            raise UsageError(GARBLED)
        try:
            reply = json.loads(self.read(size))
        except (ValueError, RecursionError):
            raise UsageError(GARBLED) from None
        if not isinstance(reply, dict):
            raise UsageError(GARBLED)
        return reply


class Decoding:
    """The turn of one picture to be decoded."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.given_up = False  # for another client's: it begins again in its next turn
        self._talk: Talk | None = None
        self._lock = threading.Lock()

    def began(self, talk: Talk) -> None:
        """Keep what `give_up` interrupts."""
        with self._lock:
            self._talk = talk
            if self.given_up:
                talk.interrupt()

    def give_up(self) -> None:
        """End it, to be begun again later."""
        with self._lock:
            self.given_up = True
            if self._talk is not None:
                self._talk.interrupt()


class DecoderTurns:
    """Whose picture is decoded: `most` at a time, and of a client one at most while another client waits.

    A client that has two when another comes gives the later one up. So one client's pictures hold up no other's, and
    those of `most` clients hold up one more for the limits of a picture at most: who had a turn last comes last.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._running: list[Decoding] = []
        self._waiting: dict[str, deque[Decoding]] = {}  # by client
        self._last: dict[str, int] = {}  # number of a client's latest turn, the oldest first
        self._count = 0

    @contextmanager
    def of(self, client: str) -> Iterator[Decoding]:
        """Wait for a turn of a client's, and have it within."""
        turn = Decoding(client)
        with self._changed:
            self._waiting.setdefault(client, deque()).append(turn)
            self._make_room(client)
            self._changed.notify_all()
            try:
                while self._next() is not turn:
                    self._changed.wait()
            except BaseException:
                self._take(turn)
                self._changed.notify_all()
                raise
            self._take(turn)
            self._running.append(turn)
            self._last.pop(client, None)
            self._count += 1
            self._last[client] = self._count
            if len(self._last) > REMEMBERED:
                del self._last[next(iter(self._last))]
            self._changed.notify_all()
        try:
            yield turn
        finally:
            with self._changed:
                self._running.remove(turn)
                self._changed.notify_all()

    def _running_of(self, client: str) -> int:
        return sum(each.client == client for each in self._running)

    def _rank(self, client: str) -> tuple[int, int]:
        return self._running_of(client), self._last.get(client, 0)

    def _next(self) -> Decoding | None:
        """Return whose turn is next; None while all are taken."""
        if len(self._running) >= self._most or not self._waiting:
            return None
        return self._waiting[min(self._waiting, key=self._rank)][0]

    def _take(self, turn: Decoding) -> None:
        """Remove one that waits."""
        self._waiting[turn.client].remove(turn)
        if not self._waiting[turn.client]:
            del self._waiting[turn.client]

    def _make_room(self, client: str) -> None:
        """Have a client with several give up its latest, for one that has none."""
        if len(self._running) < self._most or self._running_of(client):
            return
        several = [each for each in self._running if self._running_of(each.client) > 1]
        if several and not any(each.given_up for each in self._running):
            several[-1].give_up()


class Decoders:
    """The decoding processes of this one, for `most` pictures at a time; others wait for their turn."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._turns = DecoderTurns(self._most)
        self._lock = threading.Lock()
        self._staying: _StayingProcess | None = None

    def run(self, converse: Callable[[Talk], T]) -> T:
        """Return what `converse` does with a fresh process, which is ended then; it is called twice if both ended.

        It takes its turn among clients, as `in_turn_of` names them, and is called again where it gave a turn up.
        Raises what it raises; UsageError where the picture took too much time or memory, or broke the decoder, and
        where Pillow is missing; CapacityExceeded where the machine lets no process live.
        """
        if self._pid != os.getpid():  # the parent's processes answer the parent
            self._forget()
        tries = 0
        while tries < _TRIES:
            with self._turns.of(_CLIENT.get()) as turn:
                decoder = self._decoder()
                try:
                    turn.began(decoder.talk)
                    return converse(decoder.talk)
                except ChildEnded as ended:
                    reason = None if turn.given_up else decoder.blame(ended.late)
                finally:
                    decoder.close()
            if reason is not None:
                raise reason from None
            tries += not turn.given_up
        raise CapacityExceeded(
            "the process that decodes pictures ended twice, but not at a limit",
            "the kernel kills processes when memory runs out",
        )

    def close(self) -> None:
        """End the process that stays, and those that it forked; the next picture starts another."""
        if self._pid != os.getpid():
            return
        with self._lock:
            staying, self._staying = self._staying, None
        if staying is not None:
            staying.end()

    def _decoder(self) -> _Decoder:
        if not can_confine():
            return _StartedDecoder()
        with self._lock:
            for _ in range(_TRIES):
                if self._staying is None or self._staying.has_ended():
                    if self._staying is not None:
                        self._staying.end()
                        self._staying = None
                    self._staying = _StayingProcess()
                if decoder := self._staying.fork():  # None: it ended just now, of idleness
                    return decoder
        raise CapacityExceeded("the process that decodes pictures ends as soon as it has started")


class _Decoder(Protocol):
    """A process for one picture."""

    talk: Talk

    def blame(self, late: bool) -> FreeholdError | None:
        """Tell why it ended; None where the picture is not the reason."""
        ...

    def close(self) -> None:
        """End it, if it runs."""
        ...


class _StayingProcess:
    """The process that stays and forks, and the socket to it."""

    def __init__(self) -> None:
        """Start it. Raises CapacityExceeded, UsageError where Pillow is missing."""
        self._sock, self._process = _started(COMMAND)
        try:
            _greeted(self._sock)
        except BaseException:
            self.end()
            raise

    def fork(self) -> _ForkedDecoder | None:
        """Have it fork; None if it has ended. Raises CapacityExceeded."""
        (talk, theirs), (leash, handed) = _socket_pair(), _socket_pair()
        with theirs, handed:
            try:
                socket.send_fds(self._sock, [b"f"], [theirs.fileno(), handed.fileno()])
            except OSError:
                talk.close()
                leash.close()
                return None
        return _ForkedDecoder(self, Talk(talk), leash)

    def has_ended(self, wait_s: float = 0.0) -> bool:
        """Tell whether it has, or does within `wait_s`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill it; what it forked ends with it."""
        self._sock.close()
        self._process.kill()
        self._process.wait()


class _ForkedDecoder:
    """A fork of the process that stays. It is killed when its leash is closed, and the leash tells how it ended."""

    def __init__(self, parent: _StayingProcess, talk: Talk, leash: socket.socket) -> None:
        self.talk = talk
        self._parent = parent
        self._leash = leash

    def blame(self, late: bool) -> FreeholdError | None:
        """Tell why it ended; None where the process that forks ended, or could not fork."""
        status = b""
        with suppress(OSError):
            if late:
                self._leash.shutdown(socket.SHUT_WR)
            self._leash.settimeout(_END_S)
            status = self._leash.recv(4)
        if status or late:
            return _reason(int.from_bytes(status, "little", signed=True), late)
        self._parent.has_ended(wait_s=0.2)  # so that the next try starts another
        return None

    def close(self) -> None:
        """End it, if it runs."""
        self.talk.close()
        self._leash.close()


class _StartedDecoder:
    """A process that was started for one picture, where a fork could not be confined."""

    def __init__(self) -> None:
        """Start it. Raises CapacityExceeded, UsageError where Pillow is missing."""
        self._sock, self._process = _started(COMMAND_ONCE)
        self._watching = watched(self._process, limits.MEMORY)
        self._watch = self._watching.__enter__()
        try:
            _greeted(self._sock)
        except BaseException:
            self.close()
            raise
        self.talk = Talk(self._sock)

    def blame(self, late: bool) -> FreeholdError | None:
        """Tell why it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.0 if late else _END_S)
        code = self._process.poll()
        if self._watch.exceeded:
            code = OUT_OF_MEMORY
        return _reason(code if code is not None else 0, late)

    def close(self) -> None:
        """End it, if it runs."""
        self._sock.close()
        self._process.kill()
        self._process.wait()
        self._watching.__exit__(None, None, None)


def _started(command: tuple[str, ...]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a process; return our end of the socket to it. Raises CapacityExceeded."""
    ours, theirs = _socket_pair()
    with theirs:
        try:
            return ours, spawn_on_socket(command, ours, theirs, stderr=subprocess.DEVNULL, cwd="/")
        except OSError as e:
            raise CapacityExceeded(f"no process could be started to decode the picture: {e.strerror}") from e


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as e:
        raise CapacityExceeded(f"no socket could be opened to decode the picture: {e.strerror}") from e


def _greeted(sock: socket.socket) -> None:
    """Wait until a process has started. Raises UsageError where it has no Pillow, CapacityExceeded where it ended."""
    greeting = b""
    with suppress(OSError):
        sock.settimeout(START_S)
        greeting = sock.recv(1)
    if greeting == NO_PILLOW:
        raise UsageError("pictures need Pillow, which is not installed", 'pip install "freehold[eyes]"')
    if greeting != READY:
        raise CapacityExceeded(f"the process that decodes pictures did not start within {START_S:g} s")


def _reason(code: int, late: bool) -> FreeholdError:
    """Return what the end of a process says of its picture."""
    if late:
        return UsageError(f"the picture takes longer than {WALL_S:g} s to decode", HINT)
    if -code in (signal.SIGPROF, signal.SIGXCPU):
        return UsageError(f"the picture takes more than {limits.SECONDS:g} s of processor to decode", HINT)
    if code == OUT_OF_MEMORY:
        return UsageError(
            f"the picture takes more than {limits.MEMORY >> 20:,} MiB of memory to decode", HINT
        )
    if -code == signal.SIGKILL:
        return CapacityExceeded(
            "the process that decoded the picture was killed",
            "the kernel kills processes when memory runs out",
        )
    how = f"status {code}" if code >= 0 else signal.Signals(-code).name
    return UsageError(f"the picture ended the process that decoded it ({how})", HINT)


shared = Decoders()
atexit.register(shared.close)
