"""A fused file in other programs: the most probable token after each of 2,000, beside the model with its adapter here.

`python benches/adapt/fused.py MODEL+ADAPTER [--quant F16] [--tokens 2000] [--llama-cpp-python PYTHON]
[--transformers-python PYTHON] [--text FILE]`
Fuses into a folder of its own, and opens the result in our engine, in llama.cpp and in transformers (float32). Counts
where each has the same most probable token as our engine has of the file, and as it has of MODEL with its adapter. Ids
go in, so no tokenizer differs. Where a token is not that of MODEL with its adapter, the gap is shown: how many nats the
two most probable ones are apart there. A folder of safetensors is opened by transformers alone. Exits 1 where a
program has less than 99 % of our engine's tokens of the file. Ends in a JSON line.
Path: fused.py -> adapt.fuse; evals.divergence.LogitSource; peer.Child -> peer_llama_cpp.py, peer_transformers.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benches.lib import environments, peer
from benches.lib.machine import describe
from freehold import _native as native
from freehold.adapt.evals.divergence import WINDOW, LogitSource, held_out_text, tokenizer_of, windows
from freehold.adapt.fuse import fuse
from freehold.adapt.quantize.changed import read_adapters
from freehold.base.config import load_settings
from freehold.run.store import Store
from freehold.run.store.naming import adapted

LEAST = 0.99  # of the tokens, in two programs that open one file
SHOWN = 5  # gaps that are shown


def main() -> int:
    """Fuse, open everywhere, compare."""
    args = _options()
    named = adapted(Store(load_settings()), args.base, most=8)
    paths = [each.path for each in named.adapters]
    text = args.text.read_text(encoding="utf-8") if args.text else held_out_text()
    blocks, machine = windows(tokenizer_of(named.ref.path), text, args.tokens), describe(named.ref.path)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "fused"
        record = fuse(args.base, out, quant=args.quant, until=1.0, threads=args.threads)
        path = out / "model.gguf" if record["result"]["file"] == "model.gguf" else out
        pool = native.Threads(args.threads)
        with LogitSource.open(named.ref.path, pool, read_adapters(named.ref.path, paths).packed) as source:
            ours = [_top_two(np.concatenate([rows.copy() for rows in source.rows(ids)])) for ids in blocks]
        with LogitSource.open(path, pool) as source:
            fused = [np.concatenate([rows.argmax(axis=1) for rows in source.rows(ids)]) for ids in blocks]
        peers = _peers(path, blocks, args)
    tokens = np.concatenate([top for top, _ in ours])
    gaps = np.concatenate([gap for _, gap in ours])
    row: dict[str, Any] = {"bench": "fused", "base": args.base, "type": record["result"]["type"]}
    row |= {"tokens": len(tokens), "machine": machine}
    here = np.concatenate(fused)
    for name, each in {"freehold, fused": fused, **peers}.items():
        top = np.concatenate(each)
        apart = np.flatnonzero(top != tokens)
        shown = ", ".join(f"{gap:.3f}" for gap in gaps[apart[:SHOWN]]) or "none"
        row[name] = {"as_unfused": float((top == tokens).mean()), "as_here": float((top == here).mean())}
        print(
            f"{name:16} {int((top == here).sum()):,} of {len(here):,} as the file here, "
            f"{int((top == tokens).sum()):,} as MODEL+ADAPTER; gaps there: {shown}"
        )
    print(json.dumps(row))
    return int(any(row[name]["as_here"] < LEAST for name in peers))


def _top_two(rows: Any) -> tuple[Any, Any]:
    """Return each row's most probable token, and how many nats the next one is behind it."""
    best = np.partition(rows, -2, axis=1)[:, -2:]
    return rows.argmax(axis=1), best[:, 1] - best[:, 0]


def _peers(path: Path, blocks: list[list[int]], args: argparse.Namespace) -> dict[str, list[Any]]:
    """Return the most probable tokens of each program, by block."""
    python = args.transformers_python or environments.environment("oracle")
    programs = {"transformers": (python, environments.TRANSFORMERS, {"itself": True})}
    if path.is_file():
        python = args.llama_cpp_python or environments.environment("llama_cpp")
        options = {"context": WINDOW, "kv": "f32", "logits": True}
        programs["llama.cpp"] = (python, environments.LLAMA_CPP, options)
    tops: dict[str, list[Any]] = {}
    for name, (python, script, options) in programs.items():
        with peer.Child(python, script) as child:
            child.ask("load", path=str(path), threads=args.threads, **options)
            tops[name] = [child.logits(ids).argmax(axis=1) for ids in blocks]
    return tops


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", metavar="MODEL+ADAPTER")
    parser.add_argument("--quant", default="F16", help="type of the file; empty: the model's own")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-cpp-python", type=Path, help="an interpreter with llama-cpp-python")
    parser.add_argument("--transformers-python", type=Path, help="one with torch, transformers and gguf")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
