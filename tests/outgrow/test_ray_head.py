"""The head of a cluster with a stand-in of Ray: its socket, its namespace, its rolls, its ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil
import pytest

from freehold.outgrow.process.process import free_port
from freehold.outgrow.ray import head, plan
from tests.outgrow.engines import synchronous

# Stands in for `ray start --head --block`: opens the port of the cluster's state and waits.
SCRIPTS = """
import os, socket, sys, time
def main():
    at = int(sys.argv[sys.argv.index("--port") + 1])
    if "--broken" in sys.argv:
        print("Ray cannot start: no memory"); sys.exit(3)
    listening = socket.create_server(("127.0.0.1", at))
    print("Ray runtime started", flush=True)
    open("ray.pid", "w").write(str(os.getpid()))
    time.sleep(600)
"""
# Stands in for the app: notes how it was called, and answers HTTP at the ingress port, whose socket its child inherits.
APP = """
import os, socket, subprocess, sys
open("calls", "a").write(f"{os.environ['RAY_ADDRESS']} {os.environ['FREEHOLD_REVISION']} {sys.argv[1:]}\\n")
if os.path.exists("fails"):
    sys.exit("the engine has ended: no such file")
if not os.path.exists("ingress.pid"):
    listening = socket.create_server(("127.0.0.1", int(open("port").read())))
    server = (
        "import socket; from http.server import *;"
        "at = ThreadingHTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler, bind_and_activate=False);"
        f"at.socket.close(); at.socket = socket.socket(fileno={listening.fileno()}); at.serve_forever()"
    )
    quiet = subprocess.DEVNULL
    fds = [listening.fileno()]
    child = subprocess.Popen([sys.executable, "-c", server], stdout=quiet, stderr=quiet, pass_fds=fds)
    open("ingress.pid", "w").write(str(child.pid))
"""


class Started:
    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder, self.process = folder, process
        self.said: list[str] = []

    async def until(self, words: str) -> None:
        assert self.process.stdout is not None
        while not (self.said and words in self.said[-1]):
            line = await self.process.stdout.readline()
            assert line, self.said
            self.said.append(line.decode().strip())

    async def status(self) -> int:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.folder / "s.sock"))) as asked,
            asked.get("http://x/port") as reply,
        ):
            await reply.read()
            return reply.status

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@asynccontextmanager
async def running(folder: Path, *more: str, fenced: bool = False) -> AsyncIterator[Started]:
    package = folder / "lib" / "ray" / "scripts"
    package.mkdir(parents=True)
    (package / "scripts.py").write_text(SCRIPTS)
    (folder / "app.py").write_text(APP)
    gcs, ingress = free_port(), free_port()
    (folder / "port").write_text(str(ingress))
    words = [*(plan.FENCE if fenced else ()), sys.executable, "-u", head.__file__]
    words += ["--socket", "s.sock", "--ingress-port", str(ingress), "--gcs-port", str(gcs)]
    words += [*(["--fenced"] if fenced else []), "--", "--port", str(gcs), *more]
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "lib")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    tree = psutil.Process(process.pid)
    started = Started(folder, process)
    try:
        yield started
    finally:
        left: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):  # it has ended, and asyncio has not heard of it yet
            left = tree.children(recursive=True)
        for name in ("ray.pid", "ingress.pid"):
            if (folder / name).exists() and psutil.pid_exists(pid := int((folder / name).read_text())):
                left.append(psutil.Process(pid))
        if process.returncode is None:
            process.kill()
        for each in left:
            each.kill()
        await process.wait()


@synchronous
async def test_the_socket_is_the_way_in_and_its_owners_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        await started.until("the app is ready")
        assert await started.status() == 200
        assert os.stat(tmp_path / "s.sock").st_mode & 0o77 == 0
        assert started.calls[0].endswith(" 0 []")


@pytest.mark.skipif(not plan.can_fence(), reason="this system allows no network namespace")
@synchronous
async def test_in_a_namespace_nothing_listens_outside(tmp_path: Path) -> None:
    async with running(tmp_path, fenced=True) as started:
        await started.until("the app is ready")
        assert await started.status() == 200  # a socket of the file system crosses the fence
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", int((tmp_path / "port").read_text()))


@synchronous
async def test_a_roll_deploys_another_revision_and_keeps_the_socket(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        await started.until("the app is ready")
        started.process.send_signal(signal.SIGHUP)
        await started.until("every replica is new")
        assert started.calls[1].endswith(" 1 []")
        assert await started.status() == 200
        (tmp_path / "fails").touch()
        started.process.send_signal(signal.SIGHUP)
        await started.until("the old replicas stay")
        assert await started.status() == 200


@pytest.mark.heavy
@synchronous
async def test_an_end_that_is_asked_for_drains_the_app(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        await started.until("the app is ready")
        started.process.terminate()
        assert await asyncio.wait_for(started.process.wait(), 20) == 0
        assert started.calls[-1].endswith("['--delete']")
        assert not psutil.pid_exists(int((tmp_path / "ray.pid").read_text()))


@synchronous
async def test_the_end_of_ray_is_the_end_of_the_head(tmp_path: Path) -> None:
    async with running(tmp_path) as started:
        await started.until("the app is ready")
        os.kill(int((tmp_path / "ray.pid").read_text()), signal.SIGKILL)
        assert await asyncio.wait_for(started.process.wait(), 20) == 1


@synchronous
async def test_a_start_that_fails_says_why_and_ends(tmp_path: Path) -> None:
    async with running(tmp_path, "--broken") as started:
        await started.until("Ray has ended with status 3 while it started")
        assert await asyncio.wait_for(started.process.wait(), 20) == 1
        assert "Ray cannot start: no memory" in started.said
    shutil.rmtree(tmp_path / "lib")
    (tmp_path / "fails").touch()
    async with running(tmp_path) as started:
        await started.until("the engine has ended: no such file")
        assert await asyncio.wait_for(started.process.wait(), 20) == 1
        assert not (tmp_path / "s.sock").exists()
