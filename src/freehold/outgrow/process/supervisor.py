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
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from freehold.base import platforms
from freehold.base.sandbox.tree import descendants, end_all, end_group, kill, reap

log = logging.getLogger("freehold.outgrow")
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


# --- what a tree of processes leaves behind, and its removal ------------------------------------------
# An engine that is killed leaves some hundred megabytes of shared memory: no process remains that would unlink the
# names. It is taken for ours only if a process of our tree was seen to map it, it was not there before the start, and
# no process maps it any more; a name alone proves nothing, whatever it begins with. Where shared memory has no names
# on a disk, nothing is known of it.
# Where server and supervisor are killed, engines run on. Each has a variable that names its folder and its server, so a
# later server of the same data folder finds and ends them.

OWNER = "ENGINE_OF_FREEHOLD"  # variable of an engine and all below it: its server's id, its start, the folder
TEMPORARY = "fhe-"  # what the folder of an engine's temporary files begins with
NOTED = "shared.json"  # in an engine's folder: the numbers of its shared memory
_LEFT_END_S = 5.0


class SharedMemoryWatch:
    """What a tree that is about to start will have made. `noted`: a file that tells it to a later server."""

    def __init__(self, noted: Path | None = None) -> None:
        self.noted = noted
        self._before = frozenset(platforms.shared_memory().values())
        self._listed = self._before
        self._ours: set[int] = set()

    def look(self, tree: Callable[[], Iterable[int]], *, again: bool = False) -> None:
        """Note what the tree maps, if a name is new since the last look: reading maps costs milliseconds."""
        listed = frozenset(platforms.shared_memory().values())
        if listed - self._listed or (again and listed - self._before):
            known = len(self._ours)
            for pid in tree():
                self._ours |= platforms.shared_memory_of(pid) - self._before
            if len(self._ours) > known and self.noted is not None:
                with suppress(OSError):
                    self.noted.write_text(json.dumps(sorted(self._ours)), encoding="ascii")
        self._listed = listed

    def remove(self) -> int:
        """Remove what is left of ours once the tree has ended; return how many names."""
        return _unlink(self._ours)


def _unlink(ours: Iterable[int]) -> int:
    """Remove shared memory by its numbers, if it is the user's and no process maps it; return how many names."""
    numbers = frozenset(ours)
    left = {path: n for path, n in platforms.shared_memory().items() if n in numbers and _owned(path)}
    if not left:
        return 0
    in_use = {number for pid in psutil.pids() for number in platforms.shared_memory_of(pid)}
    removed = 0
    for path, number in left.items():
        if number not in in_use:
            with suppress(OSError):
                os.unlink(path)
                removed += 1
    return removed


def _owned(path: str) -> bool:
    with suppress(OSError):
        return os.stat(path).st_uid == os.geteuid()
    return False


# --- engines of a server that was killed ---------------------------------------------------------------------


def owner(folder: Path) -> str:
    """Return the variable's value for an engine that this process starts in a folder."""
    return f"{os.getpid()} {psutil.Process().create_time():.2f} {folder}"


def temporary_prefix(home: Path) -> str:
    """Return the prefix of engines' folders in the system's temporary folder: their paths below `home` are too long."""
    return f"fh-{hashlib.sha256(str(home.absolute()).encode()).hexdigest()[:12]}-"


def end_left(home: Path) -> int:
    """End the engines that an earlier server of this data folder left, with their shared memory; return how many.

    An engine of a server that runs is left alone. Takes milliseconds for each process of the user's.
    """
    folders = (home / "engines").absolute(), Path(tempfile.gettempdir()) / temporary_prefix(home)
    processes = list(_left(folders))
    temporary = {_variable(process, "TMPDIR") for process in processes}
    numbers = {number for process in processes for number in platforms.shared_memory_of(process.pid)}
    # And those that supervisors noted in engines' folders.
    notes = [*folders[0].glob(f"*/*/{NOTED}"), *folders[1].parent.glob(f"{folders[1].name}*/*/{NOTED}")]
    for note in notes:
        with suppress(OSError, ValueError, TypeError):
            numbers |= {int(number) for number in json.loads(note.read_text(encoding="ascii"))}
    kill(processes)
    psutil.wait_procs(processes, timeout=_LEFT_END_S)
    removed = _unlink(numbers)
    for path in filter(None, temporary):
        if Path(path).name.startswith(TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)
    if processes or removed:
        log.warning(
            "%d processes and %d pieces of shared memory of an earlier server's engines were left, and are ended",
            len(processes),
            removed,
        )
    return len(processes)


def _left(folders: tuple[Path, ...]) -> Iterator[psutil.Process]:
    """Yield the processes of engines in these folders whose server has ended."""
    mine = os.geteuid()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):
            if process.uids().effective != mine or process.status() == psutil.STATUS_ZOMBIE:
                continue
            value = _variable(process, OWNER)
            number, start, folder = value.split(" ", 2) if value.count(" ") >= 2 else ("0", "0", "")
            ours = folder.startswith((f"{folders[0]}{os.sep}", str(folders[1])))
            if ours and not _runs(int(number), float(start)):
                yield process


def _variable(process: psutil.Process, name: str) -> str:
    with suppress(psutil.Error, OSError):
        return process.environ().get(name, "")
    return ""


def _runs(number: int, start: float) -> bool:
    """Return whether a process with this number and start runs."""
    with suppress(psutil.Error):
        process = psutil.Process(number)
        return abs(process.create_time() - start) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    main()
