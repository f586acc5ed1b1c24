"""The process that stays and forks for every picture, and what opens one.

Started as `python -m freehold.run.pictures.child WAY FD PARENT` by decoders.py. A fork is closed in (closing_in.py)
before it reads a byte of its picture, and ends with it: no picture meets what another one left. The one that stays
imports Pillow, and reads no picture. Where no process can be confined (WAY is `once`), this process opens one itself,
within limits of time and memory alone. Knows processes and messages; pillow.py knows pictures.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from freehold.base import platforms
from freehold.base.errors import UsageError
from freehold.base.sandbox.children import LENGTH, follow_parent, may_be_limited, write_all
from freehold.base.sandbox.closing_in import close_in, runtime_files
from freehold.run.pictures.limits import NO_PILLOW, ONCE, OUT_OF_MEMORY, READY

if TYPE_CHECKING:
    from PIL.Image import Image

IDLE_S = 300.0  # without a picture the process ends; the next picture starts another
OOM_SCORE = 900  # when memory runs out the kernel ends a picture's process before the engine
_GRACE_S = 2  # of processor, beyond the timer that ends a process
_STRIP = 1 << 19  # bytes of pixels that are sent at once


def main() -> None:
    """Open the pictures that come through the socket whose number is the second argument."""
    follow_parent(int(sys.argv[3]))
    may_be_limited()
    platforms.prefer_killed(OOM_SCORE)
    with socket.socket(fileno=int(sys.argv[2])) as sock:
        try:
            from freehold.run.pictures import pillow
        except ImportError:
            sock.sendall(NO_PILLOW)
            return
        if sys.argv[1] == ONCE:
            sock.sendall(READY)
            os._exit(_opened(sock.fileno(), (), None))
        pillow.warm_up()
        gc.collect()
        gc.freeze()
        sock.sendall(READY)
        _Forks(sock).serve()


@dataclass(frozen=True, slots=True)
class _Fork:
    """A process that opens a picture. `leash`: what the parent closes to end it; `life`: a pipe it has the end of."""

    pid: int
    leash: socket.socket
    life: int


class _Forks:
    """The processes that open pictures now. This one has a single thread, as a process that forks must."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._readable = runtime_files()
        self._forks: dict[int, _Fork] = {}  # by both descriptors
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def serve(self) -> None:
        """Fork, kill and report until the parent closes the socket, or asks for nothing in IDLE_S."""
        requests = self._sock.fileno()
        while ready := self._poll.poll(None if self._forks else IDLE_S * 1000):
            # The socket last: a fork that starts may get descriptors of numbers that one which ended had in `ready`.
            for fd, _ in sorted(ready, key=lambda event: event[0] == requests):
                fork = self._forks.get(fd)
                if fd == requests:
                    if not self._start():
                        return
                elif fork is not None and fd == fork.life:
                    self._report(fork)
                elif fork is not None:
                    self._poll.unregister(fd)
                    os.kill(
                        fork.pid, signal.SIGKILL
                    )  # it is not waited for yet, so the number is still its own

    def _start(self) -> bool:
        """Fork for a picture; False if the parent is gone."""
        _, pipes, _, _ = socket.recv_fds(self._sock, 1, 2)
        if len(pipes) < 2:
            return False
        talk, leash = pipes
        life, end = os.pipe()
        me = os.getpid()
        try:
            pid = platforms.fork()
        except OSError:  # the parent reads from the leash that there is none
            for fd in (talk, leash, life, end):
                os.close(fd)
            return True
        if pid == 0:
            try:
                follow_parent(me)
                os._exit(_opened(talk, (talk, end), self._readable))
            finally:
                os._exit(1)
        os.close(talk)
        os.close(end)
        fork = _Fork(pid, socket.socket(fileno=leash), life)
        for fd in (leash, life):
            self._forks[fd] = fork
            self._poll.register(fd, select.POLLIN)
        return True

    def _report(self, fork: _Fork) -> None:
        """Tell the parent how a fork ended that has closed its end of the pipe: it has ended, or is made to."""
        os.kill(fork.pid, signal.SIGKILL)
        _, status = os.waitpid(fork.pid, 0)
        with suppress(OSError):
            fork.leash.send(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
        for fd in (fork.leash.fileno(), fork.life):
            del self._forks[fd]
            with suppress(KeyError):
                self._poll.unregister(fd)
        fork.leash.close()
        os.close(fork.life)


def _opened(fd: int, kept: Sequence[int], readable: list[str] | None) -> int:
    """Open the picture that comes through `fd`, and return the status to end with.

    `readable`: the files that may still be read; None: nothing is closed in, and `kept` is for nothing.
    """
    try:
        with open(fd, "rb", closefd=False) as sent:
            request = json.loads(_message(sent))
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            confined = True
            if readable is None:
                platforms.limit("RLIMIT_AS", request["memory"])
            else:
                seconds = int(request["seconds"]) + _GRACE_S
                confined = close_in(kept, seconds=seconds, memory=request["memory"], readable=readable)
            data = sent.read(request["bytes"])
            if not confined:
                refusal = UsageError("this kernel lets no process confine itself, so no picture is opened")
            else:
                refusal = _answered(fd, sent, data, request["format"])
            if refusal is not None:
                _say(fd, {"error": refusal.message, "hint": refusal.hint})
        return 0
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        return 1


def _answered(fd: int, sent: IO[bytes], data: bytes, name: str) -> UsageError | None:
    """Send a picture's size and then the pixels of its plan, or return why there are none. Raises MemoryError."""
    from freehold.run.pictures import pillow

    try:
        picture = pillow.PictureFile(data, name)
        _say(fd, {"width": picture.width, "height": picture.height, "notes": picture.notes})
        plan = _message(sent)
        if plan:  # otherwise its size was all that was wanted
            for image in pillow.resized(picture.pixels(), json.loads(plan)):
                _say(fd, {})
                _send_pixels(fd, image)
    except UsageError as e:
        return e
    return None


def _send_pixels(fd: int, image: Image) -> None:
    width, height = image.size
    rows = max(1, _STRIP // (3 * width))
    for top in range(0, height, rows):
        write_all(fd, image.crop((0, top, width, min(top + rows, height))).tobytes())


def _message(sent: IO[bytes]) -> bytes:
    """Return the parent's next message, empty at the end."""
    return sent.read(int.from_bytes(sent.read(LENGTH), "little"))


def _say(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    write_all(fd, len(data).to_bytes(LENGTH, "little") + data)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, OSError):
        main()
    os._exit(0)
