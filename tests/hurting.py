"""Files that hurt, sent to a real server while its health is checked; no test.

Each file is right or refused by name. What a client sees is judged alone: status, message, and how long /health takes
meanwhile. Knows requests, processes and folders; knows no form of file.
Path: eyes/test_hurting.py, sounds/test_hurting.py, benches/lib/hurting.py -> Hurting.send_all -> an HTTP server
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import httpx2
import psutil

from benches.server.servers import HOST, KINDS, Server, free_port

EVERY_S = 0.05  # between two requests for /health
AT_ONCE = 4  # files in flight
SOON_S = 20.0  # until processes that were killed must be gone
SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class HurtfulFile:
    """A file, and a pattern of the message that refuses it; without one it is right."""

    name: str
    data: bytes
    why: str = ""


F = TypeVar("F", bound=HurtfulFile)


class Hurting(Generic[F]):
    """A client of one server, for files of one sense."""

    def __init__(self, port: int, model: str) -> None:
        self.url, self.model = f"http://{HOST}:{port}", model
        self.wrong: list[str] = []  # a line for each file that was neither right nor refused
        self.seconds: dict[str, float] = {}  # of each file, the longest

    def send_all(self, files: Sequence[F]) -> None:
        """Send the files, AT_ONCE at a time, and note what was wrong."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._judge, files))

    def _judge(self, file: F) -> None:
        began = time.perf_counter()
        answer = self.answer(file)
        took = time.perf_counter() - began
        self.seconds[file.name] = max(took, self.seconds.get(file.name, 0.0))
        if file.why:
            text = answer.json()["error"]["message"] if answer.status_code == 400 else ""
            right = bool(re.search(file.why, text))
        else:
            right = answer.status_code == 200 and self.is_right(file, answer)
        if not right:
            self.wrong.append(f"{file.name}: {answer.status_code} {answer.text[:300]}")

    def answer(self, file: F) -> httpx2.Response:
        """Send a file."""
        raise NotImplementedError

    def is_right(self, file: F, answer: httpx2.Response) -> bool:
        """Tell whether an answer with status 200 is that of the file."""
        raise NotImplementedError


@contextmanager
def health(port: int) -> Iterator[list[float]]:
    """Request /health every 50 ms meanwhile; yields the list that the seconds of each answer go to, inf for none."""
    seconds: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=f"http://{HOST}:{port}", timeout=30) as client:
            while not ended.wait(EVERY_S):
                began = time.perf_counter()
                try:
                    well = client.get("/health").status_code == 200
                except httpx2.HTTPError:
                    well = False
                seconds.append(time.perf_counter() - began if well else float("inf"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield seconds
    finally:
        ended.set()
        asking.join()


def serving(model: Path, environ: dict[str, str] | None = None) -> Server:
    """Return a server of the model in a folder, not started."""
    port = free_port()
    command = [sys.executable, "-m", "freehold.cli.main", "serve", str(model), "--port", str(port)]
    return Server(command, port, environ or {}, KINDS["freehold"].health)


def check_all(
    model: Path, kind: type[Hurting[F]], files: Sequence[F], temporary: Path, staying: Counter[str]
) -> None:
    """Assert that a server with a model answers each file rightly, stays well and leaves nothing behind.

    `temporary`: an empty folder for the server's temporary files; `staying`: how many processes of each module that
    decodes remain afterwards.
    """
    with serving(model, {"TMPDIR": str(temporary)}) as server:
        client, pid = kind(server.port, model.name), server.process.pid
        client.send_all(files[:1])  # which starts the processes that stay
        assert client.wrong == []
        processes, left = processes_of(pid), _files_below(temporary)
        shared = _files_below(SHARED)
        with health(server.port) as seconds:
            client.send_all(files)
        assert client.wrong == []
        assert seconds and all(math.isfinite(each) for each in seconds)
        assert _until_left(pid, staying), processes_of(pid)
        assert processes_of(pid).keys() <= processes.keys()
        assert _files_below(temporary) == left
        own = [name for name in _files_below(SHARED) if name not in shared]
        assert not [name for name in own if "freehold" in name]


def processes_of(pid: int) -> Counter[str]:
    """Count the processes below one by the module that each runs; a fork has its parent's."""
    below: Counter[str] = Counter()
    for child in psutil.Process(pid).children(recursive=True):
        try:
            command = child.cmdline()
        except psutil.NoSuchProcess:
            continue
        after = command.index("-m") + 1 if "-m" in command else 0
        below[command[after] if command else "a zombie"] += 1
    return below


def _until_left(pid: int, staying: Counter[str]) -> bool:
    """Wait until as many processes of each module are left as may stay; tell whether they are."""
    end = time.monotonic() + SOON_S
    while not (well := all(processes_of(pid)[name] == count for name, count in staying.items())):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return well


def _files_below(folder: Path) -> list[str]:
    """List what lies in a folder of temporary files; nothing where there is no folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.is_dir() else []
