"""Our own float oracle as a child process: NumPy in float32 on the file's decoded weights, of every architecture.

Golden vectors that transformers computed judge it (tests/models/test_golden.py); it stands in where transformers reads
no GGUF of an architecture.
Requests: load (path) and logits (ids, out), as in peer_transformers.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.driver import serve
from freehold.run.models.oracle.session import Oracle


class FloatOracle:
    """The decoded model."""

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, path: str, **_unused: Any) -> dict[str, Any]:
        """Decode the file's weights to float32."""
        self.model = Oracle(path)
        return {"name": "freehold's oracle, float32", "vocab": self.model.source.cfg.vocab}

    def logits(self, ids: list[int], out: str) -> dict[str, Any]:
        """Write the logits after each of `ids` to the file `out`: raw float32 [T, V]."""
        rows = self.model.logits(ids)
        rows.tofile(out)
        return {"rows": rows.shape[0], "vocab": rows.shape[1]}


if __name__ == "__main__":
    serve(FloatOracle())
