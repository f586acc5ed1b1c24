"""Child processes that answer JSON lines, and the environments that peers are installed into.

Both ends of the pipe: Child asks, serve answers. Knows no model.
Path: peers.py or quality.py -> Child -> serve in peer_*.py.
"""

from __future__ import annotations

import json
import os
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
TRANSFORMERS = Path(__file__).with_name("peer_transformers.py")

# What each environment holds, and the program that shows it is complete. llama.cpp is built for this machine.
ENVIRONMENTS = {
    "llama_cpp": (["llama-cpp-python>=0.3.30", "numpy"], "import llama_cpp, numpy"),
    "oracle": (
        ["torch", "transformers>=5.24,<6", "gguf", "sentencepiece"],
        "import torch, transformers, gguf",
    ),
}


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


def sample_prompt(tokens: int, vocab: int, salt: int = 0) -> list[int]:
    """Spread ids over the ordinary part of a vocabulary; another `salt` differs from the first id on."""
    usable = min(vocab, 30000) - 1000 if vocab > 2000 else vocab // 2
    return [(vocab - usable) // 4 + (i * 7919 + salt * 104729) % usable for i in range(tokens)]


def serve(handler: Any) -> None:
    """Answer requests on stdin by calling handler's method named by "op", until end of file.

    Whatever libraries print on stdout goes to stderr; only answers use the real stdout.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(handler, request.pop("op"))(**request)
        except Exception as error:  # the parent must hear of it, whatever it is
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def environment(name: str) -> Path:
    """Give the interpreter of environment `name` under .peers/, made and filled on first use (minutes)."""
    python = PEERS / name / "bin" / "python"
    packages, probe = ENVIRONMENTS[name]
    if python.exists() and subprocess.run([python, "-c", probe], capture_output=True).returncode == 0:
        return python
    print(f"installing {', '.join(packages)} into {PEERS / name}: some minutes", file=sys.stderr)
    venv.create(PEERS / name, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *packages]
    native = {**os.environ, "CMAKE_ARGS": os.environ.get("CMAKE_ARGS", "-DGGML_NATIVE=ON")}
    subprocess.run(command, check=True, stdout=sys.stderr, env=native)
    return python
