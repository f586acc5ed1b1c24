"""A real `freehold serve` over tiny models, and what it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.vectors import files

GONE_S = 20.0  # a patient bound: a child that outlived its parent would stay for minutes


@dataclass
class Server:
    """A server in a process of its own, with a home of its own."""

    process: subprocess.Popen[str]
    client: httpx2.Client
    home: Path

    def descendants(self) -> list[psutil.Process]:
        """Return the engines and renderers that live now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def chat(self, model: str) -> httpx2.Response:
        """Ask for one token."""
        asked = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        return self.client.post("/v1/chat/completions", json=asked)


def all_end(processes: list[psutil.Process]) -> bool:
    """Wait for processes that are not ours; a zombie has ended."""

    def lives(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    for process in processes:
        try:
            process.wait(GONE_S)
        except psutil.TimeoutExpired:
            if lives(process):
                return False
    return True


def write_model(path: Path, template: str) -> Path:
    """Write a model of two layers with a chat template."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.write_gguf("qwen2", path, dtype="Q8_0", keys={"tokenizer.chat_template": template})


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server; what is left of it is ended."""
    started: list[Server] = []
    seen: list[psutil.Process] = []

    def start(*options: str, **environment: Any) -> Server:
        program = [sys.executable, "-P", "-m", "freehold.cli.main", "serve", "--port", "0", "--json"]
        env = {**os.environ, "FREEHOLD_HOME": str(tmp_path / "home"), "FREEHOLD_OFFLINE": "1", **environment}
        with (tmp_path / "said.txt").open("w") as said:
            process = subprocess.Popen(
                [*program, *options], stdout=subprocess.PIPE, stderr=said, text=True, env=env
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "said.txt").read_text()
        client = httpx2.Client(base_url=json.loads(line)["url"], timeout=60)
        started.append(Server(process, client, tmp_path / "home"))
        return started[-1]

    yield start
    for server in started:
        server.client.close()
        if server.process.poll() is None:
            seen += server.descendants()
            server.process.kill()
        server.process.wait()
        if server.process.stdout is not None:
            server.process.stdout.close()
    for process in seen:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
