"""Peers as child processes. Knows requests and answers; knows no model and no measure.

A child that is not asked is stopped, so that threads which spin while they wait take nothing from others.
Path: peers.py, quality.py or tests/vectors/check_families.py -> Child -> driver.main in peer_*.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benches.lib.environments import ROOT


class PeerFailed(RuntimeError):
    """The child answered with an error, or ended."""


class Child:
    """A peer process. Use as a context manager; `ask` sends a request and waits for its answer."""

    def __init__(
        self, python: str | Path, script: Path, *, stops: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        """Start `script`. `stops`: keep it stopped between requests. `env`: variables beside this process's."""
        self._stops = stops and hasattr(signal, "SIGSTOP")
        self._process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children
        )

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send {"op": op, **fields}; return the answer. Raises PeerFailed."""
        assert self._process.stdin and self._process.stdout
        self._signal("SIGCONT")
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as the empty answer tells
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(f"the peer ended with status {self._process.wait()} at {op!r}")
        self._signal("SIGSTOP")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerFailed(reply["error"])
        return reply

    def _signal(self, name: str) -> None:
        if self._stops and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))

    def logits(self, ids: list[int]) -> np.ndarray:
        """Fetch the logits after each of `ids`: float32 [T, V], through a file of its own."""
        with tempfile.NamedTemporaryFile(suffix=".f32") as file:
            reply = self.ask("logits", ids=ids, out=file.name)
            return np.fromfile(file.name, dtype=np.float32).reshape(reply["rows"], reply["vocab"])

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signal("SIGCONT")
        if kind is not None:
            self._process.kill()
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def fresh(python: str | Path, script: Path, path: Path) -> dict[str, float]:
    """Time a new process from its start to its first token, and read its memory after some more work."""
    start = time.perf_counter()
    command = [str(python), str(script), "first", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout and process.stderr
        try:
            begun = process.stdout.readline()
            seconds = time.perf_counter() - start
            rest = process.stdout.readline()
            if not begun or not rest:
                raise PeerFailed(f"a fresh process failed: {process.stderr.read().strip()[-200:]}")
        finally:
            process.kill()
    return {"seconds": seconds, **json.loads(rest)}
