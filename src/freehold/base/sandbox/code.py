"""Runs Python that a model wrote, and then a test, in processes that can neither write, connect nor start others.

Linux alone has the means to confine a process (platforms.confine); where it lacks them, such code is not run. Code and
test are two processes (confined.py): what passes is decided by one whose memory the code cannot reach. What the code
learns goes nowhere but into a few words beside "failed". Knows no model and no case.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time

from freehold.base.errors import CapacityExceeded, UsageError
from freehold.base.platforms import can_confine
from freehold.base.sandbox.children import spawn_on_socket
from freehold.base.sandbox.confined import FAILED, PASSED, REFUSED

COMMAND = (sys.executable, "-P", "-m", "freehold.base.sandbox.confined")
SECONDS = 10  # of processor, for the code, and as much for the test
WALL_S = 60  # on the clock: a busy machine may take longer
MEMORY = 1 << 30  # bytes, for each of the two
_MOST_SAID = 1024  # bytes of a verdict
_END_S = 10.0  # for two processes to be killed
_FIXED = {"PYTHONHASHSEED": "0"}  # the same code passes or fails each time


def failure(code: str, test: str) -> str:
    """Run `code`, then `test`; return in a few words why they failed, or "" where both ended without an error.

    The test sees the code's names; its values are copies, its other objects act there (sandbox/apart.py). Raises
    UsageError where this system cannot confine a process, CapacityExceeded where none can be started.
    """
    if not can_confine():
        raise UsageError(
            "tests of code run on Linux only, with a kernel that confines processes (Landlock, Linux 5.13)",
            "use another judge here",
        )
    source, tested = (text.encode("utf-8", "surrogatepass") for text in (code, test))
    try:
        verdict = _verdict(source, tested)
    except (OSError, EOFError):  # the process was idle for long, or the kernel ended it
        try:
            verdict = _verdict(source, tested)
        except (OSError, EOFError) as e:
            raise CapacityExceeded(f"no process can be started for the tests: {e}") from e
    if verdict[:1] == REFUSED:
        raise UsageError("this kernel lets no process confine itself", "use another judge here")
    if verdict == PASSED:
        return ""
    return (
        verdict[1:].decode("utf-8", "replace").strip()
        or "the test ended early: it took too much time or memory"
    )


def _verdict(code: bytes, test: bytes) -> bytes:
    with _lock:
        runner = _idle.pop() if _idle else _Runner()
    try:
        verdict = runner.verdict(code, test)
    except BaseException:
        runner.close()
        raise
    _idle.append(runner)
    return verdict


class _Runner:
    """The process that stays, and the socket to it."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = spawn_on_socket(
                COMMAND, self._sock, theirs, env=_FIXED, stderr=subprocess.DEVNULL, cwd="/"
            )

    def verdict(self, code: bytes, test: bytes) -> bytes:
        """Return what the test's process says. Raises OSError or EOFError where the process has ended."""
        pairs = [os.pipe() for _ in range(3)]
        theirs = [pairs[0][0], pairs[1][0], pairs[2][1]]
        mine = {pairs[0][1]: code, pairs[1][1]: test}
        heard = pairs[2][0]
        try:
            limits = json.dumps({"seconds": SECONDS, "memory": MEMORY}).encode()
            try:
                socket.send_fds(self._sock, [limits], theirs)
            finally:
                for fd in theirs:
                    os.close(fd)
            verdict = _exchanged(mine, heard)
            self._sock.sendall(b"e")
            self._sock.settimeout(_END_S)
            if not self._sock.recv(1):
                raise EOFError("it ended by itself")
            return verdict
        finally:
            for fd in (*mine, heard):
                os.close(fd)

    def close(self) -> None:
        """End the process; those that it started end with it."""
        self._sock.close()
        self._process.kill()
        self._process.wait()


def _exchanged(sent: dict[int, bytes], heard: int) -> bytes:
    """Write to pipes until each has its text, and return what another one says until it is closed.

    Closes those that were written. Stops after WALL_S and after _MOST_SAID bytes.
    """
    received, until = b"", time.monotonic() + WALL_S
    with selectors.DefaultSelector() as pipes:
        pipes.register(heard, selectors.EVENT_READ)
        for fd in sent:
            os.set_blocking(fd, False)
            pipes.register(fd, selectors.EVENT_WRITE)
        while len(received) <= _MOST_SAID:
            if (left := until - time.monotonic()) <= 0:
                return FAILED + f"ran longer than {WALL_S} s".encode()
            for key, _ in pipes.select(left):
                if key.fd != heard:
                    sent[key.fd] = _written(key.fd, sent[key.fd])
                    if not sent[key.fd]:
                        pipes.unregister(key.fd)
                        os.close(key.fd)
                        del sent[key.fd]
                elif piece := os.read(heard, _MOST_SAID):
                    received += piece
                else:
                    return received
    return received


def _written(fd: int, text: bytes) -> bytes:
    """Write what a pipe takes, and return the rest: none where its reader has ended."""
    try:
        return text[os.write(fd, text) :]
    except BlockingIOError:
        return text
    except BrokenPipeError:
        return b""


_idle: list[_Runner] = []  # each runs one test at a time
_lock = threading.Lock()
