"""Weights written as GGUF blocks for a CPU-second: ours beside ggml's own quantisers, in one process and one thread.

`python -m benches.adapt.writers LIBGGML [--type Q4_K ...] [--rounds 5]`
LIBGGML: a libggml-base.so, such as llama_cpp/lib/libggml-base.so of the llama-cpp-python wheel. Both write the same
seeded matrix in turns, with importance and without; bytes must be equal, or the program ends with 1. Ends in one JSON
line: medians in millions of weights a CPU-second.
Path: writers.py -> native.quantize_rows, tests/csrc/weight_matrices.py -> ggml_quantize_chunk
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.machine import describe
from freehold import _native as native
from tests.csrc.weight_matrices import F32, TYPES, U8, Ggml

ROWS, COLS = 128, 1536


def main() -> int:
    """Race the types that were asked for; print a line each."""
    args = _options()
    rng = np.random.default_rng(0)
    values = (rng.standard_t(5, (ROWS, COLS)) * 0.02).astype(np.float32)
    importance = rng.chisquare(3, COLS).astype(np.float32)
    ggml, threads = Ggml(str(args.library)), native.Threads(1)
    print(f"{'type':8}{'ours':>10}{'ggml':>10}{'with importance':>18}{'ggml':>10}   M weights a CPU-second")
    rows: dict[str, dict[str, float]] = {}
    for type in args.type or TYPES:
        row: dict[str, float] = {}
        for suffix, given in (("", None), ("_importance", importance)):
            ours, theirs = _race(ggml, threads, values, type, given, args.rounds)
            row |= {"ours" + suffix: ours, "ggml" + suffix: theirs}
        rows[type] = row
        print(
            f"{type:8}{row['ours']:10.1f}{row['ggml']:10.1f}{row['ours_importance']:18.1f}{row['ggml_importance']:10.1f}"
        )
    facts: dict[str, Any] = describe(args.library)
    del facts["model"]
    print(json.dumps({"bench": "writers", "isa": native.isa(), **facts, "rounds": args.rounds, "rows": rows}))
    return 0


def _race(
    ggml: Ggml, threads: native.Threads, values: F32, type: str, importance: F32 | None, rounds: int
) -> tuple[float, float]:
    """Return both speeds; end the program where the bytes are not the same."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        ours = _timed(lambda: native.quantize_rows(values, type, threads, importance), seconds[0])
        theirs = _timed(lambda: ggml.quantize(values, type, importance), seconds[1])
        if not np.array_equal(ours, theirs):
            sys.exit(f"{type}: the bytes differ from ggml's")
    first, second = (values.size / 1e6 / statistics.median(each) for each in seconds)
    return first, second


def _timed(work: Callable[[], U8], seconds: list[float]) -> U8:
    begun = time.process_time()
    made = work()
    seconds.append(time.process_time() - begun)
    return made


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("library", type=Path, metavar="LIBGGML")
    parser.add_argument("--type", action="append", choices=TYPES, help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
