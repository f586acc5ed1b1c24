"""Divergence of quantised arithmetic from the float oracle, ours beside llama.cpp's, on one GGUF file.

`python benches/engine/quality.py MODEL.gguf [--text FILE] [--peer freehold --peer llama_cpp] [--threads N]`
KL divergence (oracle || peer, in nats) of every next-token distribution over windows of 512 tokens, the first
eight of each left out; paired per token; f16 KV in both. The oracle is transformers in float32 on the
dequantised weights, in an environment of its own; `--own-oracle`: ours in NumPy, where transformers reads no GGUF of
the architecture. `--tokens N` measures the first N only. Ends in one JSON line.
Path: quality.py -> peer.Child -> peer_transformers.py or peer_oracle.py, peer_llama_cpp.py, peer_freehold.py
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib import environments, peer

WINDOW = 512
SKIPPED = 8  # the first positions of a window have next to no context and would dominate the mean
ROWS = 64  # rows turned to float64 at a time: 64 x 262144 x 8 bytes = 134 MB
TEXT = environments.ROOT / "tests" / "vectors" / "text.txt"
SCRIPTS = {"freehold": environments.FREEHOLD, "llama_cpp": environments.LLAMA_CPP}


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Normalise logits to log-probabilities in float64."""
    shifted = rows.astype(np.float64) - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(oracle: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL divergence of each row in nats: float64 [T]."""
    out = np.empty(len(oracle))
    for i in range(0, len(oracle), ROWS):
        p, q = log_softmax(oracle[i : i + ROWS]), log_softmax(other[i : i + ROWS])
        out[i : i + ROWS] = (np.exp(p) * (p - q)).sum(axis=-1)
    return out


def summary(kl: np.ndarray, agrees: np.ndarray) -> dict[str, float]:
    """Condense one peer's per-token figures."""
    return {
        "kl_mean": float(kl.mean()),
        "kl_trimmed": float(np.sort(kl)[: int(0.99 * len(kl))].mean()),
        "kl_median": float(np.median(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "top1": float(agrees.mean()),
    }


def measure(children: dict[str, peer.Child], oracle: peer.Child, ids: list[int]) -> dict[str, Any]:
    """Run every window through all; return arrays "kl" and "agrees" per peer, over the judged tokens."""
    kl: dict[str, list[np.ndarray]] = {name: [] for name in children}
    agrees: dict[str, list[np.ndarray]] = {name: [] for name in children}
    for start in range(0, len(ids), WINDOW):
        window = ids[start : start + WINDOW]
        if len(window) <= SKIPPED:
            continue
        truth = oracle.logits(window)[SKIPPED:]
        for name, child in children.items():
            rows = child.logits(window)[SKIPPED:]
            kl[name].append(divergence(truth, rows))
            agrees[name].append(rows.argmax(axis=-1) == truth.argmax(axis=-1))
        means = "  ".join(f"{name} {parts[-1].mean():.5f}" for name, parts in kl.items())
        print(f"tokens {start:5}..{start + len(window) - 1}: {means}", file=sys.stderr, flush=True)
    return {name: (np.concatenate(kl[name]), np.concatenate(agrees[name])) for name in children}


def report(model: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Print a line for each peer and return the whole as one record."""
    record: dict[str, Any] = {"bench": "quality", "model": model.name}
    for name, (kl, agrees) in results.items():
        record[name] = summary(kl, agrees)
        record["tokens"] = len(kl)
        values = "  ".join(f"{key} {value:.5f}" for key, value in record[name].items())
        print(f"{name:10} {values}")
    if len(results) == 2:
        ours, theirs = results["freehold"][0], results["llama_cpp"][0]
        difference = ours - theirs
        record["ratio"] = float(ours.mean() / theirs.mean())
        # One token sent to another expert can outweigh a thousand others: without each's worst hundredth as well.
        record["ratio_trimmed"] = record["freehold"]["kl_trimmed"] / record["llama_cpp"]["kl_trimmed"]
        record["paired_difference"] = float(difference.mean())
        record["paired_stderr"] = float(difference.std(ddof=1) / np.sqrt(len(difference)))
        print(
            f"ratio of means, ours / llama.cpp: {record['ratio']:.3f}, without each's worst hundredth "
            f"{record['ratio_trimmed']:.3f}; paired difference {difference.mean():.1e} +- {record['paired_stderr']:.1e}"
        )
    return record


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", action="append", choices=list(SCRIPTS), help="default: both")
    parser.add_argument("--oracle-python", type=Path, help="an interpreter with torch, transformers and gguf")
    parser.add_argument(
        "--own-oracle", action="store_true", help="judge by freehold's oracle, not by transformers"
    )
    parser.add_argument("--tokens", type=int, help="measure the first N tokens of the text only")
    parser.add_argument("--llama-cpp-python", type=Path, help="an interpreter with llama-cpp-python")
    return parser.parse_args()


def oracle_of(args: argparse.Namespace) -> peer.Child:
    """Start the child that computes in floats."""
    if args.own_oracle:
        return peer.Child(Path(sys.executable), environments.ORACLE)
    python = args.oracle_python or environments.environment("oracle")
    return peer.Child(python, environments.TRANSFORMERS)


def main() -> None:
    """Load the oracle and the peers, run the text, report."""
    args = options()
    pythons = {
        "freehold": Path(sys.executable),
        "llama_cpp": args.llama_cpp_python or environments.environment("llama_cpp"),
    }
    load = {"path": str(args.model.resolve()), "threads": args.threads}
    with ExitStack() as stack:
        oracle = stack.enter_context(oracle_of(args))
        oracle.ask("load", **load)
        children = {}
        for name in args.peer or list(SCRIPTS):
            children[name] = stack.enter_context(peer.Child(pythons[name], SCRIPTS[name]))
            children[name].ask("load", **load, context=WINDOW, kv="f16", logits=True)
        text = args.text.read_text(encoding="utf-8")
        ids = next(reversed(children.values())).ask("tokenize", text=text, special=False)["ids"][
            : args.tokens
        ]
        record = report(args.model, measure(children, oracle, ids))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
