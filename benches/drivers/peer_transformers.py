"""The float oracle as a child process: `transformers` in float32 on the GGUF's dequantised weights.

Runs in an environment with torch, transformers and gguf; nothing of Freehold's engine.
Requests: load (path, threads) and logits (ids, out), as in peer_llama_cpp.py. `itself`: the library opens the file, or
a folder of safetensors; otherwise weights are read and named by tests/vectors/reference.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # pyright: ignore[reportMissingImports]

from benches.lib.driver import serve
from tests.vectors import reference


class Oracle:
    """The loaded model."""

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, path: str, threads: int, itself: bool = False, **_unused: Any) -> dict[str, Any]:
        """Load the file's weights as float32."""
        torch.set_num_threads(threads)
        self.model = _opened(Path(path)) if itself else reference.load(path)
        return {"name": "transformers float32", "vocab": self.model.config.vocab_size}

    def logits(self, ids: list[int], out: str) -> dict[str, Any]:
        """Write the logits after each of `ids` to the file `out`: raw float32 [T, V]."""
        rows = reference.logits(self.model, ids)
        rows.tofile(out)
        return {"rows": rows.shape[0], "vocab": rows.shape[1]}


def _opened(path: Path) -> Any:
    """Open a GGUF or a folder as a user of the library does."""
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    folder, named = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **named).requires_grad_(
        False
    )


if __name__ == "__main__":
    serve(Oracle())
