"""What a tree of processes leaves behind, and its removal: shared memory, and engines whose server was killed.

An engine that is killed leaves some hundred megabytes of shared memory: no process remains that would unlink the names.
It is taken for ours only if a process of our tree was seen to map it, it was not there before the start, and no process
maps it any more; a name alone proves nothing, whatever it begins with. Knows nothing where shared memory has no names
on a disk.
Where server and supervisor are killed, engines run on. Each has a variable that names its folder and its server, so a
later server of the same data folder finds and ends them.
Path: supervisor -> SharedMemoryWatch.look, remove; DeployedModels.sweep -> end_left
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from freehold import platforms
from freehold.sandbox import tree

log = logging.getLogger("freehold.backends")
OWNER = "ENGINE_OF_FREEHOLD"  # variable of an engine and all below it: its server's id, its start, the folder
TEMPORARY = "fhe-"  # what the folder of an engine's temporary files begins with
NOTED = "shared.json"  # in an engine's folder: the numbers of its shared memory
_END_S = 5.0


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
    numbers: set[int] = set(_noted(folders))
    temporary = {_variable(process, "TMPDIR") for process in processes}
    for process in processes:
        numbers |= platforms.shared_memory_of(process.pid)
    tree.kill(processes)
    psutil.wait_procs(processes, timeout=_END_S)
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
            owner = _variable(process, OWNER)
            number, start, folder = owner.split(" ", 2) if owner.count(" ") >= 2 else ("0", "0", "")
            if folder.startswith((f"{folders[0]}{os.sep}", str(folders[1]))) and not _runs(
                int(number), float(start)
            ):
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


def _noted(folders: tuple[Path, ...]) -> Iterator[int]:
    """Yield the shared memory that supervisors noted in engines' folders."""
    files = [*folders[0].glob(f"*/*/{NOTED}"), *folders[1].parent.glob(f"{folders[1].name}*/*/{NOTED}")]
    for file in files:
        with suppress(OSError, ValueError, TypeError):
            yield from (int(number) for number in json.loads(file.read_text(encoding="ascii")))
