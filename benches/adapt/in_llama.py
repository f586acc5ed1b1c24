"""A file of ours in llama.cpp: its divergence from the source there, beside the one that `quantize --report` gives.

`python -m benches.adapt.in_llama SOURCE RESULT.gguf [--tokens N] [--llama-cpp-python PYTHON] [--text FILE]`
SOURCE: a GGUF, or the name of a model in the store. Each engine computes both files' logits on the same ids: the
package's held-out text in windows of 512 tokens. Figures are KL divergence in nats per token; keys and values are kept
as float32. Ends in one JSON line; `ratio` is llama.cpp's mean over ours, `ratio_error` its standard error by pairs of
tokens. Both engines round activations to eight bits, each in its way, and each model's rounding adds to its divergence:
the smaller that is, the further the two may part.
Path: in_llama.py -> evals.divergence; peer.Child -> peer_llama_cpp.py -> the same
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib import environments, peer
from benches.lib.machine import describe, resolve
from freehold import _native as native
from freehold.adapt.evals.divergence import (
    WINDOW,
    DivergenceCounter,
    LogitSource,
    diverge,
    held_out_text,
    tokenizer_of,
    windows,
)

KEPT = ("tokens", "mean", "low", "high", "median", "p99", "p999", "same_top", "perplexity_ratio")


def main() -> int:
    """Measure in both engines, one after the other, and compare."""
    args = _options()
    source, result = resolve(args.source), args.result.resolve()
    text = args.text.read_text(encoding="utf-8") if args.text else held_out_text()
    blocks = windows(tokenizer_of(source), text, args.tokens)
    used = os.times()
    counts = {"freehold": _ours(source, result, blocks, args.threads)}
    counts["llama_cpp"] = _theirs(source, result, blocks, args)
    after = os.times()
    found = {name: counter.result() for name, counter in counts.items()}
    for name, each in found.items():
        print(
            f"{name:10} {each.mean:.5f} nats per token ({each.low:.5f} to {each.high:.5f}), median {each.median:.5f}, "
            f"99 % {each.p99:.4f}, same top {each.same_top:.4f}, perplexity x {each.perplexity_ratio:.4f}"
        )
    ratio = found["llama_cpp"].mean / found["freehold"].mean
    apart = counts["llama_cpp"].divergences - counts["freehold"].divergences
    error = float(apart.std(ddof=1)) / len(apart) ** 0.5 / found["freehold"].mean
    print(f"llama.cpp's mean is {ratio:.4f} ± {error:.4f} times ours, over {len(apart):,} tokens")
    record: dict[str, Any] = {
        "bench": "in_llama",
        **describe(source),
        "result": str(args.result),
        "ratio": ratio,
        "ratio_error": error,
        "cpu_seconds": round(sum(after[:4]) - sum(used[:4]), 1),
        **{name: {key: getattr(each, key) for key in KEPT} for name, each in found.items()},
    }
    print(json.dumps(record))
    return 0


def _ours(source: Path, result: Path, blocks: list[list[int]], threads: int) -> DivergenceCounter:
    pool, counters = native.Threads(threads), list[DivergenceCounter]()
    with LogitSource.open(source, pool) as reference, LogitSource.open(result, pool) as other:

        def keep(done: int, total: int, counter: DivergenceCounter) -> None:
            counters.append(counter)
            _note("freehold", done, total, counter)

        diverge(reference, other, blocks, on_block=keep)
    return counters[-1]


def _theirs(
    source: Path, result: Path, blocks: list[list[int]], args: argparse.Namespace
) -> DivergenceCounter:
    python = args.llama_cpp_python or environments.environment("llama_cpp")
    counter = DivergenceCounter()
    with ExitStack() as stack:
        children = []
        for path in (source, result):
            child = stack.enter_context(peer.Child(python, environments.LLAMA_CPP, stops=True))
            child.ask("load", path=str(path), threads=args.threads, context=WINDOW, kv="f32", logits=True)
            children.append(child)
        for done, ids in enumerate(blocks, 1):
            rows, beside = (child.logits(ids)[:-1] for child in children)
            counter.add(rows, beside, np.array(ids[1:], np.int64))
            counter.close_block()
            _note("llama.cpp", done, len(blocks), counter)
    return counter


def _note(name: str, done: int, total: int, counter: DivergenceCounter) -> None:
    mean = counter.result().mean
    print(f"{name} {done} of {total} windows: {mean:.5f}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("result", type=Path, metavar="RESULT.gguf")
    parser.add_argument("--tokens", type=int, default=0, help="most tokens of the text; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--llama-cpp-python", type=Path, help="an interpreter with llama-cpp-python")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
