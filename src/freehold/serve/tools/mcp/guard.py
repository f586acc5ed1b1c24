"""A small process between us and a server of tools, which ends with all its children when we do, also by kill -9.

    us -> guard -> server -> what it starts

The server has our pipes as its own stdin, stdout and stderr. The guard keeps none of them: it adopts what loses its
parent, and waits for the end of a pipe from us, or of the server; then it ends everything below it. Its one order, a
line of JSON on that pipe, has the command and the environment, which no command line shows. Knows no protocol.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from typing import Any

from freehold.base import platforms
from freehold.base.sandbox.tree import end_all, end_group, reap

NOT_STARTED = 127  # exit status, as a shell's; why is the last line of stderr
_END_S = 5.0
_LOOK_S = 1.0  # between looks whether the parent is still the same, beside the pipe


def main() -> None:
    """Start the server and stay until it ends or the pipe does."""
    parent, orders = int(sys.argv.pop()), int(sys.argv.pop())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)  # the pipe's end decides alone
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    job = _order(orders)
    if job is None:
        return
    adopts = platforms.adopts_orphans()
    try:
        server = subprocess.Popen(
            job["argv"],
            env=job["env"],
            cwd=job["cwd"],
            start_new_session=True,  # no key pressed in a terminal reaches it
            preexec_fn=platforms.ends_with_parent,
        )
    except (OSError, ValueError) as e:
        os.write(2, f"{e}\n".encode())
        os._exit(NOT_STARTED)
    _let_go()
    status = None
    while status is None and os.getppid() == parent:
        ready, _, _ = select.select([orders, read], [], [], _LOOK_S)
        if read in ready:
            os.read(read, 4096)
        status = reap().get(server.pid)
        if orders in ready:
            break
    if not adopts:
        end_group(server.pid)  # what lost its parent is known by its group alone
    end_all(os.getpid(), _END_S)
    os._exit(0 if status is None else min(abs(os.waitstatus_to_exitcode(status)), 255))


def _order(orders: int) -> dict[str, Any] | None:
    """Read the one order; None if our parent ended before it was whole."""
    held = b""
    while not held.endswith(b"\n"):
        part = os.read(orders, 1 << 16)
        if not part:
            return None
        held += part
    return json.loads(held)


def _let_go() -> None:
    """Leave stdin, stdout and stderr to the server: their ends are to be its own."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)


if __name__ == "__main__":
    main()
