"""A fused file in other programs: the most probable token after each of 2,000, beside the model with its adapter here.

`python benches/adapt/fused.py MODEL+ADAPTER [--quant F16] [--tokens 2000] [--llama-cpp-python PYTHON]
[--transformers-python PYTHON] [--text FILE]`
Fuses into a folder of its own, and opens the result in our engine, in llama.cpp and in transformers (float32). Counts
where each has the same most probable token as our engine has of the file, as it has of MODEL with its adapter in
floats (every weight decoded to float32, the adapter added), and as it has of MODEL with its adapter as served, whose
products with weights of few bits round activations to eight bits. So the second count is what fusing changes, and what
the third has beyond it is that rounding. Ids go in, so no tokenizer differs. Where a token differs, the gap is shown:
how many nats the two most probable ones are apart in floats. A folder of safetensors is opened by transformers alone,
and has no floats of ours beside it. Exits 1 where a program has less than 99 % of our engine's tokens of the file, or
of those in floats. Ends in a JSON line.
Path: fused.py -> adapt.fuse; evals.divergence.LogitSource; peer.Child -> peer_llama_cpp.py, peer_transformers.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benches.lib import environments, peer
from benches.lib.machine import describe
from freehold import _native as native
from freehold.adapt.evals.divergence import WINDOW, LogitSource, held_out_text, tokenizer_of, windows
from freehold.adapt.fuse import fuse
from freehold.adapt.quantize.changed import ChangedTensor, FusedFile, fused_file, read_adapters
from freehold.base.config import load_settings
from freehold.run.formats import GGUFFile, open_model_file
from freehold.run.models.load import load_model
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
    pool = native.Threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "fused"
        record = fuse(args.base, out, quant=args.quant, until=1.0, threads=args.threads)
        path = out / "model.gguf" if record["result"]["file"] == "model.gguf" else out
        with LogitSource.open(named.ref.path, pool, read_adapters(named.ref.path, paths).packed) as source:
            served, gaps = _top_two(source, blocks)
        floats = served
        if path != out:
            with in_floats(named.ref.path, paths) as opened:
                model = load_model(opened, threads=pool)
                with LogitSource.open(model, pool) as source:
                    floats, gaps = _top_two(source, blocks)
        with LogitSource.open(path, pool) as source:
            here, _ = _top_two(source, blocks)
        peers = _peers(path, blocks, args)
    row: dict[str, Any] = {"bench": "fused", "base": args.base, "type": record["result"]["type"]}
    row |= {"tokens": len(here), "machine": machine}
    for name, tops in {"freehold, served": served, "freehold, fused": here, **peers}.items():
        apart = gaps[tops != floats]
        row[name] = {
            "as_here": float((tops == here).mean()),
            "as_floats": float((tops == floats).mean()),
            "as_served": float((tops == served).mean()),
            "widest_gap": float(apart.max(initial=0.0)),
        }
        print(
            f"{name:16} {int((tops == here).sum()):,} of {len(here):,} as the file here, "
            f"{int((tops == floats).sum()):,} as MODEL+ADAPTER in floats, {int((tops == served).sum()):,} as served; "
            f"gaps: {', '.join(f'{gap:.4f}' for gap in np.sort(apart)[: -SHOWN - 1 : -1]) or 'none'}"
        )
    print(json.dumps(row))
    return int(any(min(row[name]["as_here"], row[name]["as_floats"]) < LEAST for name in peers))


@contextmanager
def in_floats(model: Path, paths: list[Path]) -> Iterator[FusedFile]:
    """Open a GGUF with adapters in its weights, all of them as float32: nothing is rounded but by float32 itself."""
    opened = open_model_file(model)
    assert isinstance(opened, GGUFFile)
    with closing(fused_file(opened, paths)) as fused:
        coded = {
            name: ChangedTensor(tensor, ())
            for name, tensor in opened.tensors.items()
            if len(tensor.shape) == 2
        }
        changed = {name: each for name, each in fused.tensors.items() if isinstance(each, ChangedTensor)}
        yield FusedFile(opened, fused.adapters, {**coded, **changed})


def _top_two(source: LogitSource, blocks: list[list[int]]) -> tuple[Any, Any]:
    """Return the most probable token after each of the text's, and how many nats the next one is behind it."""
    tops, gaps = [], []
    for ids in blocks:
        for rows in source.rows(ids):
            best = np.partition(rows, -2, axis=1)[:, -2:]
            tops.append(rows.argmax(axis=1))
            gaps.append(best[:, 1] - best[:, 0])
    return np.concatenate(tops), np.concatenate(gaps)


def _peers(path: Path, blocks: list[list[int]], args: argparse.Namespace) -> dict[str, Any]:
    """Return the most probable tokens of each program."""
    python = args.transformers_python or environments.environment("oracle")
    programs = {"transformers": (python, environments.TRANSFORMERS, {"itself": True})}
    if path.is_file():
        python = args.llama_cpp_python or environments.environment("llama_cpp")
        options = {"context": WINDOW, "kv": "f32", "logits": True}
        programs["llama.cpp"] = (python, environments.LLAMA_CPP, options)
    tops: dict[str, Any] = {}
    for name, (python, script, options) in programs.items():
        with peer.Child(python, script) as child:
            child.ask("load", path=str(path), threads=args.threads, **options)
            tops[name] = np.concatenate([child.logits(ids).argmax(axis=1) for ids in blocks])
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
