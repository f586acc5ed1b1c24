"""Child processes that answer JSON lines, and the environment that llama.cpp is installed into.

Knows pipes and a virtual environment; knows no model. Path: peers.py or quality.py -> Child -> peer_*.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"
LLAMA_CPP = Path(__file__).with_name("peer_llama_cpp.py")
FREEHOLD = Path(__file__).with_name("peer_freehold.py")
REQUIREMENT = "llama-cpp-python>=0.3.30"


class PeerFailed(RuntimeError):
    """The child answered with an error, or ended."""


class Child:
    """A peer process. Use as a context manager; `ask` sends a request and waits for its answer."""

    def __init__(self, python: str | Path, script: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send {"op": op, **fields}; return the answer. Raises PeerFailed."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(f"the peer ended with status {self._process.wait()} at {op!r}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerFailed(reply["error"])
        return reply

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
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def peers_python(folder: Path = PEERS) -> Path:
    """Give the interpreter that has llama-cpp-python, installing it into `folder` on first use (minutes)."""
    python = folder / "bin" / "python"
    if _has_llama_cpp(python):
        return python
    print(f"installing {REQUIREMENT} into {folder} (built from source: some minutes)", file=sys.stderr)
    venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", REQUIREMENT, "numpy"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return python


def _has_llama_cpp(python: Path) -> bool:
    if not python.exists():
        return False
    return subprocess.run([python, "-c", "import llama_cpp, numpy"], capture_output=True).returncode == 0
