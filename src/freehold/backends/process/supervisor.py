"""A small process between us and an engine: the engine and all its children end when we end, even by kill -9.

    us -> supervisor -> engine -> its workers

The kernel ends a process with its parent only where that process asked for it, and an engine's workers do not. So the
supervisor adopts what loses its parent, and holds the end of a pipe from us: when that closes, or its own parent
changes, it ends everything below it. Then it removes the shared memory that the tree left and the folder of its
temporary files, says how the engine ended, and ends. Its orders come on stdin, never by its command line or
environment, which others can read:

    {"argv": [...], "env": {...}, "cwd": ..., "place": "0-15"}, then {"signal": 15} or {"kill": true}; end of input:
    kill

and it reports on stdout, a line of JSON each: {"pid", "temporary"} or {"error"}, and at last {"ended", "left",
"removed", "memory_kill"}. The engine's own output goes to stderr, which is a pipe to us. Knows no engine.
Path: OwnProcess -> spawn -> supervisor -> the engine
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from freehold import platforms
from freehold.backends.process.leftovers import NOTED, TEMPORARY, SharedMemoryWatch
from freehold.sandbox.tree import descendants, end_all, end_group, reap

_LOOK_S = 0.5  # between looks at what may be gone later: a listing of one folder, some 50 us
_LAST_WORDS_S = 2.0  # for the children of an engine that ended: they may still write why
_END_S = 8.0
_RECENT_S = 30.0  # a process that the system ended for lack of memory this long ago explains an end


def _begins(place: set[int]) -> None:
    """Bind the engine, before its program begins, to our own life and to its processors."""
    platforms.ends_with_parent()
    platforms.run_on(place)


class _Tree:
    """The engine and what descends from it."""

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.me = os.getpid()
        self.adopts = platforms.adopts_orphans()
        self.shared = SharedMemoryWatch()
        self.memory_kills, self.memory_kill_at = platforms.memory_kills(), -_RECENT_S
        self.engine: subprocess.Popen[bytes] | None = None
        self.status: int | None = None
        # Of the engine alone: its sockets there outlive a kill, and lie open to others in the system's own folder. A
        # short name, as a socket's path is limited.
        self.temporary = tempfile.mkdtemp(prefix=TEMPORARY)

    def start(self, job: dict[str, Any]) -> None:
        """Start the engine in a session of its own: no key pressed in a terminal reaches it. Raises OSError."""
        self.shared.noted = Path(job["cwd"]) / NOTED
        self.engine = subprocess.Popen(
            job["argv"],
            env={**job["env"], **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self.temporary)},
            cwd=job["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            start_new_session=True,
            umask=0o077,  # also of its sockets in the system's temporary folder, over which some engines pickle
            preexec_fn=partial(_begins, platforms.processors(job.get("place", ""))),
        )

    def obey(self, line: bytes) -> bool:
        """Follow an order; return whether it is to end now."""
        order = json.loads(line)
        if order.get("kill"):
            return True
        self.shared.look(self._pids, again=True)
        if self.engine is not None and self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.engine.pid, order["signal"])
        return False

    def look(self) -> None:
        """Note what may be gone later: shared memory by who maps it, and whether memory ran out."""
        self.shared.look(self._pids)
        if (kills := platforms.memory_kills()) > self.memory_kills:
            self.memory_kills, self.memory_kill_at = kills, time.monotonic()

    def collect(self) -> bool:
        """Take the status of what ended; return whether the engine has."""
        self._take(reap())
        return self.status is not None

    def end(self) -> dict[str, Any]:
        """End every process of it and tell what happened."""
        self.shared.look(self._pids, again=True)
        if not self.adopts and self.engine is not None:  # what lost its parent is known by its group alone
            end_group(self.engine.pid)
        left, taken = end_all(self.me, _END_S)
        self._take(taken)
        short = time.monotonic() - self.memory_kill_at < _RECENT_S
        shutil.rmtree(self.temporary, ignore_errors=True)
        return {"ended": self.status, "left": left, "removed": self.shared.remove(), "memory_kill": short}

    def _pids(self) -> list[int]:
        return [process.pid for process in descendants(self.me)]

    def _take(self, taken: dict[int, int]) -> None:
        if self.engine is not None and self.engine.pid in taken:
            self.status = self.engine.returncode = os.waitstatus_to_exitcode(taken[self.engine.pid])


def main() -> None:
    """Start the engine and stay until it has ended."""
    tree = _Tree(int(sys.argv.pop()))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Orders and the pipe's end decide alone. A handler, as the engine would inherit a signal that is ignored.
        signal.signal(number, lambda _number, _frame: None)
    woken = _wake_on_children()
    lines = _Orders()
    job = lines.first()
    if job is None:
        tree.end()
        return
    try:
        tree.start(job)
    except OSError as e:
        tree.end()
        _report({"error": f"{e.strerror}: {e.filename or job['argv'][0]}"})
        return
    assert tree.engine is not None
    _report({"pid": tree.engine.pid, "temporary": tree.temporary})
    while not tree.collect():
        ready, _, _ = select.select([0, woken], [], [], _LOOK_S)
        if woken in ready:
            os.read(woken, 4096)
        if (0 in ready and not lines.pass_to(tree)) or os.getppid() != tree.parent:
            break
        tree.look()
    else:
        _wait_for_last_words(tree)
    _report(tree.end())


def _wait_for_last_words(tree: _Tree) -> None:
    until = time.monotonic() + _LAST_WORDS_S
    while time.monotonic() < until and descendants(tree.me):
        tree.collect()
        tree.look()
        time.sleep(0.05)


class _Orders:
    """Lines from stdin."""

    def __init__(self) -> None:
        self._held = b""

    def first(self) -> dict[str, Any] | None:
        """Wait for the first line; None if we ended before it."""
        while b"\n" not in self._held:
            part = os.read(0, 1 << 16)
            if not part:
                return None
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    def pass_to(self, tree: _Tree) -> bool:
        """Read what is there and do it; False when the tree is to end."""
        part = os.read(0, 1 << 16)
        self._held += part
        while b"\n" in self._held:
            line, _, self._held = self._held.partition(b"\n")
            if tree.obey(line):
                return False
        return bool(part)


def _wake_on_children() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return read


def _report(what: dict[str, Any]) -> None:
    with suppress(OSError):  # its reader may be gone
        os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
