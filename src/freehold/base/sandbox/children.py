"""Child processes that end when their parent does, however the parent ended.

Knows processes, signals, their memory and messages; knows nothing of what a child computes. Two mechanisms,
because each has a hole:

  - Linux sends the child a SIGKILL when the *thread* that started it ends (PR_SET_PDEATHSIG). So every child is
    started by one thread that lives as long as the process, and a caller's thread may come and go.
  - Elsewhere a thread of the child looks once a second whether it has been adopted. It needs the interpreter
    lock, so a child that works on a stranger's file limits its own processor time as well (renderer.py).
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from freehold.base import platforms
from freehold.base.platforms import LIMITS_MEMORY

START_S = 60.0  # for an interpreter to start, on a machine that is short of everything
KILLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # ends by no limit of the child's own
_LOOK_S = 1.0
P = ParamSpec("P")
T = TypeVar("T")
_PASSED_ON = ("PYTHON", "LD_", "DYLD_", "LC_", "LANG", "COV_")


def spawn(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start `command` with this process's id as its last argument, which `follow_parent` takes.

    `options` are Popen's. Raises OSError.
    """
    return _starter().start([*command, str(os.getpid())], options)


def passed_on() -> dict[str, str]:
    """Return what a child that works for a stranger gets of the environment: nothing secret."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}


def spawn_on_socket(
    command: Sequence[str],
    ours: socket.socket,
    theirs: socket.socket,
    *,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start `command` with the other end of our socket, which it names next, and what `passed_on` returns.

    `env`: what it gets of the environment besides; `options` are Popen's. Raises OSError, and closes ours then.
    """
    try:
        return spawn(
            [*command, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**passed_on(), **(env or {})},
            **options,
        )
    except OSError:
        ours.close()
        raise


def follow_parent(parent: int) -> None:
    """End this process when the process `parent` ends; at once if it is gone already."""
    if not platforms.ends_with_parent():
        threading.Thread(target=_watch, args=(parent,), name="freehold-parent", daemon=True).start()
    if os.getppid() != parent:  # it ended before the call above
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def may_be_limited() -> None:
    """Let `limited` end this process, whatever signals its parent ignored or blocked; write no core."""
    with suppress(AttributeError, ValueError):  # children inherit both
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    platforms.limit("RLIMIT_CORE", 0)


@contextmanager
def limited(seconds: float, memory: int) -> Iterator[None]:
    """End this process by SIGPROF after `seconds` of processor; fail allocations beyond `memory` bytes."""
    platforms.limit("RLIMIT_AS", memory)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        platforms.limit("RLIMIT_AS", None)  # the next message may be a long one


class _Starter:
    """A thread that starts processes for all others."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._queue: queue.SimpleQueue[tuple[Sequence[str], dict[str, Any], Future[Any]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name="freehold-children", daemon=True).start()

    def start(self, command: Sequence[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
        done: Future[subprocess.Popen[bytes]] = Future()
        self._queue.put((command, options, done))
        return done.result()

    def _run(self) -> None:
        while True:
            command, options, done = self._queue.get()
            try:
                done.set_result(subprocess.Popen(command, **options))
            except BaseException as e:
                done.set_exception(e)
            del command, options, done


_lock = threading.Lock()
_started: _Starter | None = None


def _starter() -> _Starter:
    """Return this process's thread; a forked child has none of its parent's."""
    global _started
    with _lock:
        if _started is None or _started.pid != os.getpid():
            _started = _Starter()
        return _started


# --- ends a child process that takes too much memory, on systems whose kernel does not --------------
# Linux fails an allocation beyond RLIMIT_AS, which the child answers by itself. macOS does not enforce that
# limit, so the parent looks at the child's resident memory every 20 ms: a machine with room for a few hundred
# megabytes more stays usable, which is what the limit is for.

_WATCH_S = 0.02


class Watch:
    """Whether the child was killed for its memory."""

    def __init__(self) -> None:
        self.exceeded = False
        self._over = threading.Event()

    def run(self, child: subprocess.Popen[bytes], most: int) -> None:
        """Look until `stop`, or until the child has ended or holds more than `most` bytes."""
        import psutil

        try:
            seen = psutil.Process(child.pid)
            while not self._over.wait(_WATCH_S):
                if seen.memory_info().rss > most:
                    self.exceeded = True
                    child.kill()
                    return
        except psutil.Error:  # it has ended
            return

    def stop(self) -> None:
        """End the looking."""
        self._over.set()


@contextmanager
def watched(child: subprocess.Popen[bytes], most: int, by_kernel: bool = LIMITS_MEMORY) -> Iterator[Watch]:
    """Kill `child` if it holds more than `most` bytes meanwhile; does nothing where the kernel sees to it."""
    watch = Watch()
    if by_kernel:
        yield watch
        return
    thread = threading.Thread(target=watch.run, args=(child, most), name="freehold-memory", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()


# --- messages between a process and its renderer: each a length in four bytes, then its bytes -------

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


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: a process that is closed in may not call what a socket has for that."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


class ChildEnded(Exception):
    """The child closed its end before it had answered, or is `late`."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late


class TimedTalk:
    """A socket to a child, and the seconds that it has on the clock. Every method raises ChildEnded."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._until = time.monotonic() + seconds

    def send(self, message: bytes) -> None:
        """Send its length, then the message."""
        self._in_time(send, self._sock, message)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes whose number the child knows."""
        self._in_time(self._sock.sendall, data)

    def fill(self, into: memoryview) -> None:
        """Read as many bytes as `into` has."""
        at = 0
        while at < len(into):
            count = self._in_time(self._sock.recv_into, into[at:])
            if not count:
                raise ChildEnded
            at += count

    def read(self, size: int) -> bytearray:
        """Return the next `size` bytes."""
        data = bytearray(size)
        self.fill(memoryview(data))
        return data

    def interrupt(self) -> None:
        """End what another thread waits for: it gets ChildEnded."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _in_time(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        left = self._until - time.monotonic()
        if left <= 0:
            raise ChildEnded(late=True)
        self._sock.settimeout(left)
        try:
            return act(*args, **kwargs)
        except TimeoutError:
            raise ChildEnded(late=True) from None
        except OSError:
            raise ChildEnded from None
