"""Checks the GGUF files of files.py against llama.cpp: it must load each and compute golden/'s logits.

Run from the repository's root, anywhere with NumPy and gguf: `python -m tests.vectors.check_gguf
[PEERS_PYTHON]`. llama.cpp knows no sliding window for `llama`, so `mistral` is compared inside its first
window only. Its GELU is a table of f16 values, so gemma3 cannot agree better than a few thousandths.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from benches.lib.environments import LLAMA_CPP, environment
from benches.lib.peer import Child
from tests.vectors import files, weights

GOLDEN = Path(__file__).with_name("golden")
BOUND = 2e-4
BOUND_GELU = 1e-2


def apart(python: Path, family: str, path: Path) -> float:
    """Largest difference between llama.cpp's logits for the file and the golden ones."""
    with np.load(GOLDEN / f"{family}.npz") as golden, Child(python, LLAMA_CPP) as peer:
        peer.ask("load", path=str(path), threads=1, context=64, kv="f32", logits=True)
        got = peer.logits(golden["ids"].tolist())
        rows = weights.FAMILIES[family].config["sliding_window"] if family == "mistral" else weights.LENGTH
        return float(np.abs(got - golden["full"])[:rows].max())


def main() -> int:
    """Print one line a family; return 1 if any is further apart than its bound."""
    python = Path(sys.argv[1]) if len(sys.argv) > 1 else environment("llama_cpp")
    failed = False
    for family in (name for name, it in weights.FAMILIES.items() if it.gguf):
        with tempfile.TemporaryDirectory() as folder:
            path = files.write_gguf(family, Path(folder) / f"{family}.gguf")
            difference = apart(python, family, path)
        print(f"{family:14} {difference:.1e}")
        failed |= not difference <= (BOUND_GELU if family.startswith("gemma") else BOUND)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
